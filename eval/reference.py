"""Write the statistics of pictures that samples are compared with, on one or several processes.

accelerate launch eval/reference.py folder:imagenet/val --size 256 --images --out imagenet256_val.npz
"""

from vistok.metrics.processes import run_script
from vistok.metrics.reference_command import add_reference_arguments, run_reference

if __name__ == "__main__":
    run_script(__doc__, add_reference_arguments, run_reference)
