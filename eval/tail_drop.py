"""What tail drop is good for: the same recipe trained with it and without it, at every prefix length.

    python eval/tail_drop.py                                   # configs/onedpiece/tiny.yaml: two trainings of minutes
    python eval/tail_drop.py configs/flextok/tiny.yaml steps=300 --json outputs/tail_drop.json

PSNR on the held-out pictures of the recipe's data. Both runs resume where they were killed.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import fields, replace
from pathlib import Path

import torch

from vistok.config import embedded_config, load_config
from vistok.data import ImageDataset, open_source
from vistok.errors import VistokError
from vistok.hub import from_pretrained
from vistok.metrics.curve import default_lengths
from vistok.metrics.pixel import psnr
from vistok.models.base import Tokenizer
from vistok.report.table import text_table
from vistok.training import TrainConfig, train

_OPTIONS = ("tail_drop", "nested_dropout")  # what families call it


def main() -> int:
    """Train both, print the table; the exit status is 0, or 2 after an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default=str(embedded_config("onedpiece/tiny.yaml")))
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="changes to the file, for both runs")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_intermixed_args()
    try:
        config = load_config(TrainConfig, args.config, args.overrides)
        with_drop = from_pretrained(train(config).folder / "final")
        option = next(field.name for field in fields(with_drop.config) if field.name in _OPTIONS)
        plain = replace(config, name=f"{config.name}_no_drop", model={**config.model, option: "none"})
        without = from_pretrained(train(plain).folder / "final")
        # Trained at full length only, it does not offer prefixes; here it is made to.
        mode = {option: getattr(with_drop.config, option)}
        forced = type(without)(replace(without.config, **mode)).eval()
        forced.load_weights(without.state_dict())
        lengths = default_lengths(with_drop)
        results = {"with": _scores(with_drop, config, lengths), "without": _scores(forced, config, lengths)}
    except VistokError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    rows = [[name, *(f"{score:.2f}" for score in scores)] for name, scores in results.items()]
    print(text_table([option, *(str(length) for length in lengths)], rows))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"lengths": lengths, "psnr": results}, indent=1) + "\n", encoding="utf-8")
    return 0


@torch.no_grad()
def _scores(model: Tokenizer, config: TrainConfig, lengths: list[int]) -> list[float]:
    """Mean PSNR in dB of the held-out pictures at each length."""
    source = open_source(config.data.val or config.data.train, split="val")
    data = ImageDataset(source, image_size=model.image_size)
    images = torch.stack([data[index]["image"] for index in range(len(data))])
    tokens = model.encode(images)
    return [float(psnr(model.decode(tokens.truncate(length)), images).mean()) for length in lengths]


if __name__ == "__main__":
    raise SystemExit(main())
