"""Put a trained model beside the others that come with vistok.

python train/package.py runs/vistok_ordered vistok_ordered
python train/package.py runs/vistok_writer vistok_writer --tokenizer vistok_ordered
"""

from vistok.training.package import main

if __name__ == "__main__":
    raise SystemExit(main(__doc__))
