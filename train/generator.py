"""Train a generator on the tokens of a tokenizer.

python train/generator.py configs/digit_ar/tiny.yaml --dry-run      two small steps on random pictures
accelerate launch train/generator.py configs/digit_ar/tiny.yaml     all GPUs; the same command resumes
accelerate launch train/generator.py configs/digit_ar/tiny.yaml name=mine optimizer.lr=1e-3 loss.tokenizer=runs/titok_tiny/final
"""

from vistok.training.command import main

if __name__ == "__main__":
    raise SystemExit(main("generator", __doc__))
