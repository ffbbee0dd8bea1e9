"""Evaluate a tokenizer's reconstructions on one or several processes.

accelerate launch eval/reconstruction.py --model titok_s128.imagenet --data folder:imagenet --json-file result.json
"""

from vistok.metrics.command import add_reconstruction_arguments, run_reconstruction
from vistok.metrics.processes import run_script

if __name__ == "__main__":
    run_script(
        "Reconstruction: PSNR, SSIM, LPIPS, Frechet distance, codebook, speed.",
        add_reconstruction_arguments,
        run_reconstruction,
    )
