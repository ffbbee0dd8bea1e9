"""Measure a published model the way its paper did, beside the figure to expect.

accelerate launch eval/reproduce.py titok_l32.imagenet --data folder:imagenet/val
accelerate launch eval/reproduce.py rar_b.imagenet --reference VIRTUAL_imagenet256_labeled.npz
python eval/reproduce.py titok_s128.imagenet --data photos: --limit 4 --random-weights    # a try without a network
"""

from vistok.metrics.processes import run_script
from vistok.metrics.reproduce import add_reproduce_arguments, run_reproduce

if __name__ == "__main__":
    run_script(__doc__, add_reproduce_arguments, run_reproduce)
