"""What semantic regularization is good for: the same GigaTok recipe with and without it, and a generator on the tokens of each.

    python eval/semantic_regularization.py                     # configs/gigatok/tiny.yaml: half an hour on two CPU cores
    python eval/semantic_regularization.py configs/gigatok/tiny.yaml steps=300 --generator-steps 200 --json result.json

A row a tokenizer: PSNR of held-out pictures; accuracy of a linear probe on the encoder's and on the decoder's features; entropy of
its tokens under the frequencies of each (what a generator knows that reads nothing), and the lowest loss that a small
autoregressive model reaches on held-out tokens. Both rows have the same pictures, steps and seeds. The
generator's share is the last column: with a codebook that is used more, there is more to predict. All runs resume where they were
killed.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vistok.config import embedded_config, load_config
from vistok.data import ImageDataset, open_source
from vistok.errors import VistokError
from vistok.generate import tokenize_images
from vistok.hub import from_pretrained
from vistok.metrics.pixel import psnr
from vistok.metrics.probe import evaluate_probe
from vistok.models.base import Tokenizer
from vistok.report.table import text_table
from vistok.training import TrainConfig, train

_EVALUATIONS = 10
_HEADER = {
    "psnr": "PSNR",
    "probe_encoder": "probe, encoder",
    "probe_decoder": "probe, decoder",
    "entropy": "entropy, nats",
    "loss": "AR loss, nats",
    "predicted": "predicted, nats",
}


def main() -> int:
    """Train both, measure both, print the table; the exit status is 0, or 2 after an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default=str(embedded_config("gigatok/tiny.yaml")))
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="changes to the file, for both runs")
    parser.add_argument("--generator", default=str(embedded_config("digit_ar/tiny.yaml")), help="its configuration")
    parser.add_argument("--generator-steps", type=int, default=400, help="%(default)s")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_intermixed_args()
    try:
        config = load_config(TrainConfig, args.config, args.overrides)
        plain = replace(
            config,
            name=f"{config.name}_no_alignment",
            model={**config.model, "repa_dim": 0},
            loss={**config.loss, "alignment": ""},
        )
        rows = {}
        for name, each in {"with": config, "without": plain}.items():
            final = train(each).folder / "final"
            rows[name] = _measure(final, each, args.generator, args.generator_steps)
    except VistokError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    cells = [[name, *(f"{row[key]:.3f}" for key in _HEADER)] for name, row in rows.items()]
    print(text_table(["regularization", *_HEADER.values()], cells))
    print(f"most frequent class: {rows['with']['chance']:.3f} of the held-out pictures")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


def _measure(final: Path, config: TrainConfig, generator: str, steps: int) -> dict[str, Any]:
    model, spec = from_pretrained(final), config.data.train
    probes = {part: evaluate_probe(model, spec, part=part) for part in ("encoder", "decoder")}
    entropy, score = _held_out(model, spec)
    loss = _generator_loss(final, config, generator, steps)
    return {
        "psnr": score,
        **{f"probe_{part}": probe["accuracy"] for part, probe in probes.items()},
        "chance": probes["encoder"]["chance"],
        "entropy": entropy,
        "loss": loss,
        "predicted": entropy - loss,
    }


@torch.no_grad()
def _held_out(model: Tokenizer, spec: str) -> tuple[float, float]:
    """Cross-entropy of held-out tokens under the training tokens' frequencies (and one of each code), and mean PSNR."""
    sets = {
        split: ImageDataset(open_source(spec, split=split), image_size=model.image_size) for split in ("train", "val")
    }
    counts = torch.ones(model.codebook_size, dtype=torch.float64)
    counts += tokenize_images(model, sets["train"]).tokens.ids.flatten().bincount(minlength=model.codebook_size)
    tokens = tokenize_images(model, sets["val"]).tokens
    images = torch.stack([sets["val"][index]["image"] for index in range(len(sets["val"]))])
    scores = [psnr(model.decode(part), own) for part, own in zip(tokens.split(64), images.split(64), strict=True)]
    return float(-(counts / counts.sum()).log()[tokens.ids].mean()), float(torch.cat(scores).mean())


def _generator_loss(final: Path, config: TrainConfig, generator: str, steps: int) -> float:
    """The lowest negative log-likelihood a token of held-out pictures in the course of a run."""
    every = max(1, steps // _EVALUATIONS)
    changes = [f"steps={steps}", f"eval_every={every}", f"name={config.name}_generator", f"loss.tokenizer={final}"]
    run = load_config(TrainConfig, generator, changes)
    run = replace(run, data=config.data, output_dir=config.output_dir, preview_every=0)
    lines = (train(run).folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    values = [json.loads(line).get("eval/nll_per_token") for line in lines]
    return min(value for value in values if value is not None)


if __name__ == "__main__":
    raise SystemExit(main())
