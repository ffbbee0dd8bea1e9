"""Generate a set of images on one or several processes; a killed run resumes.

accelerate launch eval/sample.py --model rar_b.imagenet --num 50000 --format npz --out outputs/rar_b
"""

from vistok.metrics.processes import run_script
from vistok.report.generate_command import add_generate_arguments, run_generate

if __name__ == "__main__":
    run_script("Images out of a generator, balanced over classes or prompts.", add_generate_arguments, run_generate)
