"""Evaluate generated images against a reference on one or several processes.

accelerate launch eval/generation.py outputs/rar_b --reference VIRTUAL_imagenet256_stats.npz --json-file result.json
"""

from vistok.metrics.generation_command import add_generation_arguments, run_generation
from vistok.metrics.processes import run_script

if __name__ == "__main__":
    run_script(
        "Generated images: the Frechet distance from a reference (gFID).", add_generation_arguments, run_generation
    )
