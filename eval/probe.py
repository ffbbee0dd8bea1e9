"""Linear probe of a tokenizer's features on a labelled source.

python eval/probe.py --model gigatok_bl_256.imagenet --data folder:imagenet --json-file probe.json
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch

from vistok import VistokError
from vistok.hub import from_pretrained
from vistok.metrics.probe import evaluate_probe
from vistok.metrics.result import save_result


def main() -> None:
    """Parse, probe, show."""
    parser = argparse.ArgumentParser(description="Accuracy of a linear probe on a tokenizer's features.")
    parser.add_argument("--model", required=True, help="name, hub id, folder or file")
    parser.add_argument("--data", required=True, help="a labelled source with train and val splits")
    parser.add_argument("--part", default="encoder", choices=("encoder", "decoder"), help="%(default)s")
    parser.add_argument("--crop", default="arc", help="of all pictures (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--limit", type=int, help="pictures of each split at most")
    parser.add_argument("--weight-decay", type=float, default=1e-3)
    parser.add_argument("--json-file", type=Path)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    options = {key: getattr(args, key) for key in ("part", "crop", "batch_size", "limit", "weight_decay")}
    try:
        model = from_pretrained(args.model, device="cuda" if torch.cuda.is_available() else "cpu")
        result = evaluate_probe(model, args.data, **options)
        if args.json_file is not None:
            save_result(result, args.json_file)
    except (VistokError, OSError) as error:
        raise SystemExit(f"{parser.prog}: error: {error}") from error
    print(f"accuracy {result['accuracy']:.4f} (train {result['accuracy_train']:.4f}, chance {result['chance']:.4f})")


if __name__ == "__main__":
    main()
