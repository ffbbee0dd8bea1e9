"""The command line of ``train/*.py``, which ``accelerate launch`` starts."""

from __future__ import annotations

import argparse
import logging

from vistok.config import load_config
from vistok.errors import VistokError
from vistok.training import TrainConfig, train


def main(task: str, description: str) -> int:
    """Train what the command line says.

    Args:
        task: the kind of training that the script is for.
        description: of the script, for ``--help``.
    Returns:
        the exit status: 0, or 130 after a signal (the same command goes on); an error exits with 2.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file; see configs/")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="changes to the file, read as YAML")
    resume = "go on from the newest checkpoint in output_dir/name, or remove what is there and start anew"
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True, help=resume)
    parser.add_argument("--dry-run", action="store_true", help="try the recipe offline and keep nothing")
    args = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    try:
        config = load_config(TrainConfig, args.config, args.overrides)
        if config.task != task:
            parser.error(f"{args.config} trains a {config.task}: use train/{config.task}.py")
        return 0 if train(config, resume=args.resume, dry_run=args.dry_run).finished else 130
    except VistokError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
