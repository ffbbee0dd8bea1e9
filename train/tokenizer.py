"""Train a tokenizer.

python train/tokenizer.py configs/titok/tiny.yaml --dry-run      two small steps on random pictures
accelerate launch train/tokenizer.py configs/titok/tiny.yaml     all GPUs; the same command resumes
accelerate launch train/tokenizer.py configs/titok/tiny.yaml name=mine optimizer.lr=1e-3 data.train=folder:PICTURES
"""

from vistok.training.command import main

if __name__ == "__main__":
    raise SystemExit(main("tokenizer", __doc__))
