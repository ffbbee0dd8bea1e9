"""Measure a tokenizer's reconstructions, in one process or, with ``accelerate launch``, in several.

    accelerate launch eval/reconstruction.py --model titok_s128.imagenet --data folder:imagenet/val --protocol titok
"""

from __future__ import annotations

import argparse
import sys

import torch

from vistok.errors import VistokError
from vistok.metrics.command import add_reconstruction_arguments, run_reconstruction


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_reconstruction_arguments(
        parser, model_help="a registered name, hub id, folder or file", data_help="folder:PATH, emoji:, photos:, wds:PATTERN ..."
    )
    args = parser.parse_args()
    try:
        run_reconstruction(args, device=args.device or ("cuda" if torch.cuda.is_available() else "cpu"), say=print)
    except VistokError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
