"""Tokenize a source of pictures into shards on one or several processes; a killed run resumes.

accelerate launch train/token_shards.py --model titok_l32.imagenet --data folder:imagenet --views ten_crop --out tokens/train
"""

from vistok.metrics.processes import run_script
from vistok.report.tokenize_command import add_tokenize_arguments, run_tokenize

if __name__ == "__main__":
    run_script("A source of pictures as token shards.", add_tokenize_arguments, run_tokenize)
