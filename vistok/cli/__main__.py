"""``python -m vistok.cli``: the same as ``vistok``."""

from vistok.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
