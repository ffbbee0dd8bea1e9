"""From nothing: train, measure, generate, search, and one page that shows it, in a few minutes.

Everything runs on the embedded smileys, through the same functions as any other run.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vistok.config import embedded_config, load_config
from vistok.data import load_images, open_source
from vistok.demo.parts import Parts, sample_grid, some_images
from vistok.entropy import FrequencyTable, has_codec
from vistok.generate.prior import LearnedPrior
from vistok.hub import from_pretrained
from vistok.metrics.curve import evaluate_curve
from vistok.metrics.pixel import psnr
from vistok.metrics.reconstruction import evaluate_reconstruction
from vistok.metrics.result import save_result
from vistok.report.curve import curve_plots, curve_remarks
from vistok.report.grid import save_image
from vistok.report.html import Page
from vistok.report.plots import bar_plot, line_plot
from vistok.report.reconstruction import default_lengths
from vistok.report.strip import length_strip
from vistok.search import search
from vistok.token_layout import TokenLayout, block_ends
from vistok.training import TrainConfig, train
from vistok.training.log import read_history

logger = logging.getLogger(__name__)

DATA = "emoji:Smileys & Emotion"
_BUDGET = 8
_SHOWN = 6
_SAMPLES = 32
# Of words that the captions of training pictures have, most in combinations that none of them has.
_PROMPTS = (
    "red heart",
    "crying cat",
    "smiling face with sunglasses",
    "angry face with horns",
    "monkey covering eyes",
    "sleeping face",
    "face with open mouth",
    "cat with heart eyes",
)
# A sample this near to a training picture is a memory of it (reconstructions of training pictures reach about 25 dB).
_RECALLED_DB = 20.0
_COMMANDS = """\
accelerate launch train/tokenizer.py configs/titok/tiny.yaml output_dir={out}/runs
vistok eval recon --model {out}/runs/titok_tiny/final --data "emoji:Smileys & Emotion" --split val --length 16
accelerate launch train/generator.py configs/digit_ar/tiny.yaml output_dir={out}/runs \\
    loss.tokenizer={out}/runs/titok_tiny/final
vistok generate --model {out}/runs/digit_ar_tiny/final --tokenizer {out}/runs/titok_tiny/final \\
    --prompt "crying cat" --num 16 --out {out}/crying_cats
vistok reconstruct my_picture.jpg --model {out}/runs/titok_tiny/final --out grid.png"""


def run_training_demo(out: str | Path, *, quick: bool = False) -> dict[str, Any]:
    """Run the whole chain and write ``out/report.html``.

    Args:
        out: folder of the report, the pictures and the runs; an interrupted demo goes on where it was.
        quick: a few steps of everything, which shows that it runs and not what it can do.
    Returns:
        the numbers of the report, and how long each part took.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    timed = Parts(6)
    tokenizer_run = timed("train a tokenizer", _train, "titok/tiny.yaml", out, quick)
    tokenizer = from_pretrained(tokenizer_run / "final")
    numbers, curve = timed("measure it on held-out pictures", _measure, tokenizer, out)
    generator_run = timed(
        "train a generator", _train, "digit_ar/tiny.yaml", out, quick, [f"loss.tokenizer={tokenizer_run / 'final'}"]
    )
    generator = from_pretrained(generator_run / "final")
    samples = timed("generate, and search", _sample, generator, tokenizer, out, quick)
    sizes = timed("code the tokens", _file_sizes, generator, tokenizer) if has_codec() else []
    pictures = timed("write the report", _pictures, tokenizer, out)
    _report(
        out, tokenizer, generator, tokenizer_run, generator_run, numbers, curve, samples, sizes, pictures, timed.seconds
    )
    total = sum(timed.seconds.values())
    print(f"wrote {out / 'report.html'} after {total:.0f} seconds; open it in a browser")
    return {
        "report": str(out / "report.html"),
        "seconds": timed.seconds,
        "metrics": numbers,
        "samples": samples["facts"],
    }


def _train(name: str, out: Path, quick: bool, overrides: list[str] | None = None) -> Path:
    """Run an embedded configuration below ``out/runs``; its folder."""
    changes = [f"output_dir={out / 'runs'}", *(overrides or [])]
    if quick:
        changes += ["steps=4", "schedule.warmup_steps=1", "checkpoint_every=4", "log_every=1"]
    config = load_config(TrainConfig, embedded_config(name), changes)
    return train(config).folder


def _measure(tokenizer: Any, out: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Reconstruction of the held-out smileys at the lengths of the report, and quality against bytes beside image codecs."""
    source = open_source(DATA, split="val")
    results = [
        # Twenty pictures say nothing about a distance between distributions, so none is measured.
        evaluate_reconstruction(tokenizer, source, length=length, features="none", lpips=False, progress=False)
        for length in default_lengths(tokenizer)
    ]
    for result in results:
        save_result(result, out / f"reconstruction_{result['tokens_per_image']:.0f}.json")
    curve = evaluate_curve({tokenizer.name: tokenizer}, source, perceptual="none", progress=False)
    save_result(curve, out / "curve.json")
    return results, curve


def _sample(generator: Any, tokenizer: Any, out: Path, quick: bool) -> dict[str, Any]:
    """The same classes and seeds without search and with best-of-N; which samples are memories."""
    classes = generator.config.class_names
    count = 8 if quick else _SAMPLES
    conditions = [classes[number % len(classes)] for number in range(count)]
    seeds = list(range(1000, 1000 + count))
    plain = search(generator, tokenizer, conditions, budget=1, seeds=seeds)
    budget = 2 if quick else _BUDGET
    best = search(generator, tokenizer, conditions, budget=budget, seeds=seeds)
    source = open_source(DATA, split="train")
    known = load_images([source.image(index) for index in range(len(source))], like=tokenizer)
    known = torch.cat([known, known.flip(-1)])
    facts = {}
    for name, result in (("plain", plain), ("best_of_n", best)):
        nearest = _nearest_psnr(result.images, known)
        facts[name] = {
            "log_likelihood": float(result.scores.double().mean()),
            "recalled": float((nearest > _RECALLED_DB).double().mean()),
            "token_forwards": result.cost.token_forwards,
            "seconds": result.cost.seconds,
        }
        save_image(sample_grid(result.images, conditions), out / f"samples_{name}.png")
    texts = list(_PROMPTS[: count // 2] * 2)
    drawn = search(generator, tokenizer, texts, budget=budget, seeds=[2000 + number for number in range(len(texts))])
    save_image(sample_grid(drawn.images, texts), out / "samples_text.png")
    return {
        "plain": plain.images,
        "best": best.images,
        "conditions": conditions,
        "budget": budget,
        "facts": facts,
        "texts": texts,
        "text_images": drawn.images,
    }


def _file_sizes(generator: Any, tokenizer: Any) -> list[tuple[str, str, float, float]]:
    """Bytes an image of both splits: packed, coded by the training tokens' frequencies, and by the generator."""
    tokens = {}
    for split in ("train", "val"):
        source = open_source(DATA, split=split)
        tokens[split] = tokenizer.encode(load_images([source.image(i) for i in range(len(source))], like=tokenizer))
    table = FrequencyTable.fit([tokens["train"]])
    priors = {"packed": None, "static frequencies": table, "the generator": LearnedPrior(generator)}
    rows = []
    for split, own in tokens.items():
        checks = 3 * len(block_ends(own.num_tokens)) + 1  # and the length
        for name, prior in priors.items():
            sizes = [len(record) for record in TokenLayout.of(own, prior).encode(own)]
            mean = sum(sizes) / len(sizes)
            rows.append((split, name, mean, mean - checks))
    return rows


def _nearest_psnr(images: Tensor, known: Tensor) -> Tensor:
    """PSNR [B] of each image with the known picture that is nearest to it."""
    return torch.stack([psnr(known, image.expand_as(known)).max() for image in images])


def _pictures(tokenizer: Any, out: Path) -> dict[str, Any]:
    """Held-out and training pictures, coarse to fine."""
    grids: dict[str, Any] = {}
    for split in ("val", "train"):
        grids[split] = length_strip(tokenizer, some_images(open_source(DATA, split=split), _SHOWN, like=tokenizer))
        save_image(grids[split], out / f"reconstructions_{split}.png")
    return grids


def _usage_plot(tokenizer: Any) -> str:
    """How often the ids occur on the training pictures, the most frequent first."""
    source = open_source(DATA, split="train")
    tokens = tokenizer.encode(load_images([source.image(i) for i in range(len(source))], like=tokenizer))
    counts = tokens.ids.flatten().bincount(minlength=tokens.vocab_size).sort(descending=True).values.tolist()
    used = sum(count > 0 for count in counts)
    return bar_plot(
        counts[:400],
        title=f"codebook: {used} of {len(counts)} ids in use (the 400 most frequent)",
        x_label="id, by frequency",
        y_label="times used",
    )


def _report(
    out: Path,
    tokenizer: Any,
    generator: Any,
    tokenizer_run: Path,
    generator_run: Path,
    numbers: list[dict[str, Any]],
    curve: dict[str, Any],
    samples: dict[str, Any],
    sizes: list[tuple[str, str, float, float]],
    grids: dict[str, Any],
    seconds: dict[str, float],
) -> None:
    total = sum(seconds.values())
    page = Page("vistok: the demo", f"A 1D tokenizer and a generator, trained on this machine in {total:.0f} seconds.")
    page.text(
        f"The tokenizer turns a 64x64 picture into at most {tokenizer.num_tokens} tokens of 12 bits, coarse to fine: any "
        "number of leading tokens can be decoded. It is TiTok's architecture with finite scalar quantisation and tail drop, "
        "started from the principal components of the training pictures."
    )
    page.heading("Reconstructions")
    page.picture(grids["val"], "Held-out smileys, which the tokenizer never saw, from 1, 2, 4, ... and all tokens.")
    page.picture(grids["train"], "Training smileys, for comparison.")
    page.heading("Measured on the held-out smileys")
    page.table(
        ["tokens", "bits a pixel", "PSNR, dB", "SSIM", "images"],
        [
            [
                f"{r['tokens_per_image']:.0f}",
                f"{r['bits_per_pixel']:.4f}",
                f"{r['psnr']:.2f}",
                f"{r['ssim']:.3f}",
                r["images"],
            ]
            for r in numbers
        ],
    )
    labels = {"x_label": "step", "title": "tokenizer: loss"}
    page.heading("Rate and distortion")
    page.text(
        "Every prefix of the tokens is a smaller file. Beside it, what image codecs reach on the same pictures, also at a half and "
        "a quarter of their side; none of them can go as low as the first tokens."
    )
    page.plots(*curve_plots(curve)[:2])
    page.plots(_usage_plot(tokenizer))
    for line in curve_remarks(curve)[1:]:
        page.text(line)
    page.heading("Training")
    page.plots(
        line_plot({"loss": read_history(tokenizer_run, "train/total")}, y_label="L2 + 0.2 L1", smooth=True, **labels),
        line_plot(
            {"nats a token": read_history(generator_run, "train/nll_per_token")},
            title="generator: negative log-likelihood",
            x_label="step",
            y_label="nats a token",
        ),
    )
    page.text("The tokenizer's loss jumps because every step draws how many tokens it keeps.")
    page.heading("Samples")
    facts, budget = samples["facts"], samples["budget"]
    page.picture(sample_grid(samples["plain"], samples["conditions"]), "One draw for each class and seed (N = 1).")
    page.picture(
        sample_grid(samples["best"], samples["conditions"]),
        f"The same classes and seeds, the likeliest of {budget} draws (best-of-{budget}, scored by the generator itself).",
    )
    page.table(
        ["", "mean log-likelihood", f"within {_RECALLED_DB:.0f} dB of a training picture", "token forwards", "seconds"],
        [
            [name, f"{f['log_likelihood']:.1f}", f"{f['recalled']:.0%}", f["token_forwards"], f"{f['seconds']:.1f}"]
            for name, f in (("N = 1", facts["plain"]), (f"best of {budget}", facts["best_of_n"]))
        ],
    )
    page.text(
        "A generator trained for two minutes on some 150 pictures mostly recalls them, and search for likelihood favours "
        "what it recalls best. What this shows is that the whole chain works; it is not a claim about new pictures."
    )
    page.picture(
        sample_grid(samples["text_images"], samples["texts"]),
        f"From texts, the likeliest of {budget} draws. The model reads a text as a bag of the words that captions of training "
        "pictures have.",
    )
    if sizes:
        page.heading("Tokens in fewer bytes")
        page.text(
            "A .vtk file may code its ids by their frequencies, or by what the generator expects next. Bytes an image; without "
            "the checks that find damage, in the last column. The generator all but knows the training pictures by heart, so "
            "the held-out ones are what counts."
        )
        page.table(
            ["pictures", "coded by", "bytes", "without checks"],
            [[split, name, f"{mean:.1f}", f"{bare:.1f}"] for split, name, mean, bare in sizes],
        )
    page.heading("The same by hand")
    page.commands(_COMMANDS.format(out=out))
    page.table(["part", "seconds"], [[name, f"{value:.0f}"] for name, value in seconds.items()])
    page.save(out / "report.html")
