"""Quality against tokens and bytes, of tokenizers and image codecs.

python eval/curve.py --model titok_s128.imagenet --data folder:imagenet --out outputs/curve
"""

from __future__ import annotations

import argparse
import logging

import torch

from vistok import VistokError
from vistok.report.curve_command import add_curve_arguments, run_curve


def main() -> None:
    """Parse, evaluate, show."""
    parser = argparse.ArgumentParser(description="Quality against tokens and bytes, of tokenizers and image codecs.")
    add_curve_arguments(parser)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        run_curve(args, device=device, say=print)
    except (VistokError, OSError) as error:
        raise SystemExit(f"{parser.prog}: error: {error}") from error


if __name__ == "__main__":
    main()
