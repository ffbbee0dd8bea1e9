"""Make docs/gallery.md and its pictures from the models that come with vistok; two minutes on a CPU.

python eval/gallery.py
"""

from vistok.demo.gallery import main

if __name__ == "__main__":
    raise SystemExit(main(__doc__))
