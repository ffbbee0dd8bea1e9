"""Evaluate a tokenizer's reconstructions on one or several processes.

accelerate launch eval/reconstruction.py --model titok_s128.imagenet --data folder:imagenet --json-file result.json
"""

from __future__ import annotations

import argparse
import logging

from accelerate import Accelerator

from vistok import VistokError
from vistok.metrics.command import add_reconstruction_arguments, run_reconstruction


def main() -> None:
    """Parse, evaluate, show."""
    parser = argparse.ArgumentParser(
        description="Reconstruction: PSNR, SSIM, LPIPS, Frechet distance, codebook, speed."
    )
    add_reconstruction_arguments(parser)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    accelerator = Accelerator(cpu=args.device == "cpu")
    if args.device not in ("", accelerator.device.type):
        parser.error(f"accelerate runs this on {accelerator.device}; choose GPUs by `accelerate launch --gpu_ids`")
    try:
        run_reconstruction(args, device=accelerator.device, say=accelerator.print, accelerator=accelerator)
    except (VistokError, OSError) as error:
        raise SystemExit(f"{parser.prog}: error: {error}") from error
    finally:
        accelerator.end_training()


if __name__ == "__main__":
    main()
