"""Train a generator, in one process or, with ``accelerate launch``, in several; resumes where it stopped.

    accelerate launch train/generator.py configs/digit_ar/tiny.yaml [a.b=value ...]
"""

from __future__ import annotations

import argparse
import logging
import sys

from vistok.errors import VistokError
from vistok.training import train


def main() -> int:
    """Parse, train, say where the result is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file below configs/")
    parser.add_argument("overrides", nargs="*", help="a.b=value, read as YAML")
    parser.add_argument("--fresh", action="store_true", help="start anew; the run's old checkpoints are removed")
    parser.add_argument("--dry-run", action="store_true", help="two small steps on random pictures, on the CPU, offline")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    try:
        result = train(args.config, args.overrides, resume=not args.fresh, dry_run=args.dry_run)
    except VistokError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"step {result.step}: {'dry run, nothing was kept' if args.dry_run else result.folder / 'final'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
