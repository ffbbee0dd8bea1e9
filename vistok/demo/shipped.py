"""The main job on the weights that come with vistok: reconstruct, count, generate, search, fine-tune, and one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vistok.config import embedded_config, load_config
from vistok.data import load_images, open_source
from vistok.data.images import image_files
from vistok.demo.parts import Parts, some_images
from vistok.demo.pictures import ERRORS, beams, coarse_to_fine, searched, tokens_needed
from vistok.errors import DataError
from vistok.hub import from_pretrained
from vistok.metrics.curve import evaluate_curve
from vistok.metrics.pixel import psnr
from vistok.metrics.result import save_result
from vistok.models.base import Tokenizer
from vistok.report.curve import curve_plots, curve_remarks
from vistok.report.grid import image_grid, save_image
from vistok.report.html import Page
from vistok.report.plots import line_plot
from vistok.training import TrainConfig, train
from vistok.training.log import read_history

ORDERED, ADAPTIVE, WRITER = "vistok_ordered", "vistok_adaptive", "vistok_writer"
PROMPTS = (
    "crying cat face",
    "japan flag",
    "red apple",
    "smiling face with sunglasses",
    "heart on fire",
    "Flags",
    "Food & Drink",
    "Animals & Nature",
)
_BUDGETS = (1, 4, 16)
_SHOWN = 6
_OWN = 12
_BEAMS = 4
_COMMANDS = """\
vistok reconstruct my_photo.jpg --model vistok_ordered --out grid.png
vistok encode my_photos/ --model vistok_ordered --target psnr=22 --out photos.vtk
vistok complexity my_photos/ --model vistok_adaptive --out outputs/complexity
vistok generate --model vistok_writer --prompt "crying cat face" --num 16 --out outputs/cats
vistok train configs/vistok/ordered.yaml init_from=vistok_ordered data.train=folder:my_photos
vistok demo --train        # the same from nothing: trains a tokenizer and a generator first"""


def run_demo(out: str | Path, *, pictures: Sequence[str | Path] = (), quick: bool = False) -> dict[str, Any]:
    """Run the whole chain and write ``out/report.html``.

    Args:
        out: folder of the report and of the pictures.
        pictures: the user's own: files and folders; the first dozen is shown, and fine-tuning learns from them.
        quick: a few pictures and steps, which shows that it runs.
    Returns:
        the numbers of the report, and how long each part took.
    Raises:
        DataError: no picture where ``pictures`` says that there are some.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    files = _files(pictures)
    timed = Parts(7)
    ordered, adaptive, writer = timed(
        "load the models", lambda: [from_pretrained(n) for n in (ORDERED, ADAPTIVE, WRITER)]
    )
    own = load_images(files[:_OWN], like=ordered) if files else None
    strips = timed("reconstruct", _reconstruct, ordered, own, out)
    counts = timed("count the tokens that pictures need", _count, adaptive, own, out)
    budgets = _BUDGETS[:2] if quick else _BUDGETS
    prompts = PROMPTS[:2] if quick else PROMPTS
    samples, found = timed("generate, and search", searched, writer, ordered, prompts, budgets, seed=1)
    save_image(samples, out / "samples.png")
    trajectory, beam = timed("search by beams", beams, writer, ordered, prompts[:_BEAMS], seed=1)
    save_image(trajectory, out / "trajectory.png")
    tuning = timed("fine-tune", _fine_tune, ordered, own, out, quick)
    limit = 4 if quick else None
    options = {"perceptual": "none", "progress": False, "limit": limit}
    curve = timed("measure", evaluate_curve, {ORDERED: ordered}, open_source("photos:", split="val"), **options)
    save_result(curve, out / "curve.json")
    page = Page(
        "vistok: the demo", "One-dimensional, ordered, variable-length image tokens, on weights that come with vistok."
    )
    _write(page, strips, counts, (samples, trajectory), {**found, "beam": beam}, tuning, curve)
    page.table(["part", "seconds"], [[name, f"{value:.1f}"] for name, value in timed.seconds.items()])
    page.save(out / "report.html")
    total = sum(timed.seconds.values())
    print(f"wrote {out / 'report.html'} after {total:.0f} seconds; open it in a browser")
    return {
        "report": str(out / "report.html"),
        "seconds": timed.seconds,
        "tokens": {f"{error:g}": count for error, count in zip(ERRORS, counts["mean"], strict=True)},
        "scores": {budget: float(result.scores.mean()) for budget, result in found.items()},
        "token_forwards": {budget: result.cost.token_forwards for budget, result in found.items()},
        "fine_tuning": {key: value for key, value in tuning.items() if isinstance(value, float)},
    }


def _files(pictures: Sequence[str | Path]) -> list[Path]:
    files: list[Path] = []
    for entry in map(Path, pictures):
        files += image_files(entry) if entry.is_dir() else [entry]
    missing = [str(file) for file in files if not file.is_file()]
    if missing or (pictures and not files):
        raise DataError(f"no picture at {missing[0] if missing else ', '.join(map(str, pictures))}")
    return files


def _reconstruct(ordered: Tokenizer, own: Tensor | None, out: Path) -> dict[str, Any]:
    """Pictures nobody trained on, coarse to fine; the user's own first."""
    chosen = {
        "Held-out photographs, from their first 1, 4, 16, 64 and all 256 tokens; stored bytes in brackets.": "photos:",
        "Held-out emoji.": "emoji:",
    }
    strips = {} if own is None else {"Your pictures.": coarse_to_fine(ordered, own)}
    for caption, spec in chosen.items():
        strips[caption] = coarse_to_fine(ordered, some_images(open_source(spec, split="val"), _SHOWN, like=ordered))
    for number, strip in enumerate(strips.values()):
        save_image(strip, out / f"reconstructions_{number}.png")
    return strips


def _count(adaptive: Tokenizer, own: Tensor | None, out: Path) -> dict[str, Any]:
    """How many tokens pictures are given."""
    held_out = open_source("photos:", split="val"), open_source("emoji:", split="val")
    images = own
    if own is None:
        images = torch.cat([some_images(source, _SHOWN // 2, like=adaptive) for source in held_out])
    needed = tokens_needed(adaptive, images)
    save_image(needed.picture, out / "counts.png")
    return {"picture": needed.picture, "mean": needed.tokens.double().mean(dim=1).tolist()}


def _fine_tune(ordered: Tokenizer, own: Tensor | None, out: Path, quick: bool) -> dict[str, Any]:
    """About a minute of training on a dozen pictures: the user's, or held-out photographs; quality on them before and after."""
    folder = out / "own_pictures"
    folder.mkdir(parents=True, exist_ok=True)
    given = some_images(open_source("photos:", split="val"), _OWN, like=ordered) if own is None else own
    for number, image in enumerate(given):
        save_image(image, folder / f"{number}.png")
    spec = f"folder:{folder}"
    steps = 4 if quick else 60
    changes = [
        f"output_dir={out / 'runs'}",
        "name=fine_tuned",
        f"init_from={ORDERED}",
        f"data.train={spec}",
        "data.crop=center",
        f"steps={steps}",
        "batch_size=16",
        "schedule.warmup_steps=2",
        "optimizer.lr=5e-4",
        "log_every=2",
        "eval_every=0",
        "preview_every=0",
        "checkpoint_every=1000",
        "ema.decay=0.9",
    ]
    run = train(load_config(TrainConfig, embedded_config("vistok/ordered.yaml"), changes)).folder
    tuned = from_pretrained(run / "final")
    source = open_source(spec)
    images = load_images([source.image(index) for index in range(len(source))], like=ordered)
    before, after = (model.decode(model.encode(images, length=64)).clamp(0, 1) for model in (ordered, tuned))
    shown = slice(0, _SHOWN)
    rows = [list(part[shown].cpu()) for part in (before, after, images)]
    grid = image_grid(rows, row_titles=["before", "after", "original"])
    save_image(grid, out / "fine_tuned.png")
    return {
        "picture": grid,
        "before": float(psnr(before, images).mean()),
        "after": float(psnr(after, images).mean()),
        "history": read_history(run, "train/total"),
        "pictures": "your pictures" if own is not None else "photographs it had never seen",
        "steps": steps,
    }


def _write(
    page: Page,
    strips: dict[str, Any],
    counts: dict[str, Any],
    samples: tuple[Any, Any],
    found: dict[Any, Any],
    tuning: dict[str, Any],
    curve: dict[str, Any],
) -> None:
    page.heading("A picture is a list of tokens, coarse to fine")
    page.text(
        "A 64x64 picture becomes up to 256 tokens of 12 bits. They are ordered: the first ones say the most, and any number of "
        "leading ones can be decoded. Cutting the list is all that it takes to make the file smaller."
    )
    for caption, strip in strips.items():
        page.picture(strip, caption)
    page.heading("As many tokens as the picture needs")
    page.text(
        "The adaptive model is told how far off the picture may be (mean absolute error, of 1), and gives each picture as many "
        "tokens as that takes, in one pass. Flat pictures get few, textures get many."
    )
    page.picture(counts["picture"], "From the simplest picture to the most complex; tokens and quality below each.")
    page.heading("Pictures from texts, with and without search")
    page.text(
        "The generator writes the first 64 tokens of an emoji for a category or a text. Search draws several and keeps the "
        "one that the generator finds likeliest: the same model, more computing. It saw 1,693 emoji in its training and "
        "reads a text as the set of its words; what it was never shown in some form, it cannot draw."
    )
    page.picture(samples[0], "Columns: prompts. Rows: more and more draws, of the same seeds.")
    page.picture(
        samples[1],
        "Beam search judges prefixes, which only ordered tokens allow: the best beam after each step, with its log-likelihood.",
    )
    page.table(
        ["draws", "pictures", "mean log-likelihood, nats", "token forwards", "seconds"],
        [
            [
                budget,
                len(result.scores),
                f"{float(result.scores.mean()):.1f}",
                result.cost.token_forwards,
                f"{result.cost.seconds:.1f}",
            ]
            for budget, result in found.items()
        ],
    )
    page.heading("Fine-tuning")
    page.text(
        f"{tuning['steps']} steps on {tuning['pictures']}: from {tuning['before']:.2f} dB to {tuning['after']:.2f} dB on these "
        "very pictures, at 64 tokens."
    )
    page.plots(
        line_plot({"loss": tuning["history"]}, title="fine-tuning: loss", x_label="step", y_label="loss", smooth=True)
    )
    page.picture(tuning["picture"], "64 tokens: before, after, and the pictures themselves.")
    page.heading("Measured on the held-out photographs")
    page.plots(*curve_plots(curve)[:2])
    for line in curve_remarks(curve):
        page.text(line)
    page.heading("The same by hand")
    page.commands(_COMMANDS)
