"""Train a tokenizer.

python train/tokenizer.py configs/titok/tiny.yaml --dry-run      two small steps on random pictures
accelerate launch train/tokenizer.py configs/titok/tiny.yaml     all GPUs; the same command resumes
accelerate launch train/tokenizer.py configs/titok/tiny.yaml name=mine optimizer.lr=1e-3 data.train=folder:PICTURES
"""

from __future__ import annotations

import argparse
import logging

from vistok.config import load_config
from vistok.errors import VistokError
from vistok.training import TrainConfig, train

TASK = "tokenizer"


def main() -> int:
    """Train; the exit status is 0, 2 after an error, 130 after a signal (the same command goes on)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file; see configs/")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="changes to the file, read as YAML")
    resume = "go on from the newest checkpoint in output_dir/name, or remove what is there and start anew"
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True, help=resume)
    parser.add_argument("--dry-run", action="store_true", help="try the recipe offline and keep nothing")
    args = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    try:
        config = load_config(TrainConfig, args.config, args.overrides)
        if config.task != TASK:
            parser.error(f"{args.config} trains a {config.task}: use train/{config.task}.py")
        return 0 if train(config, resume=args.resume, dry_run=args.dry_run).finished else 130
    except VistokError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")


if __name__ == "__main__":
    raise SystemExit(main())
