"""``vistok ...``: a thin door to the library's functions."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence

from vistok.errors import VistokError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status. Errors of users' making are one clear line (``--debug`` shows more)."""
    # Threads that wait for work by spinning take the cores from those that have some, wherever a
    # machine is shared; read once, when torch is imported, which no line above this one does.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    parser = build_parser()
    args, rest = parser.parse_known_args(arguments)
    # argparse ends a list of positional arguments at the first option; overrides may also come after it.
    if hasattr(args, "overrides") and all("=" in text and not text.startswith("-") for text in rest):
        args.overrides += rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    logging.basicConfig(level=logging.INFO if args.verbose else logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        result = args.run(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except (VistokError, OSError) as error:
        if args.debug:
            raise
        if args.json:
            print(json.dumps({"error": str(error), "kind": type(error).__name__}))
        print(f"vistok: error: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(result, indent=2, default=str))
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    from vistok.cli.job_commands import add_job_commands
    from vistok.cli.model_commands import add_model_commands
    from vistok.cli.picture_commands import add_picture_commands

    parser = argparse.ArgumentParser(
        prog="vistok",
        description="One-dimensional and variable-length image tokenizers: load, train, measure, generate, search.",
        epilog="Start with: vistok models; vistok info titok_l32.imagenet; vistok COMMAND --help",
    )
    parser.set_defaults(json=False, debug=False, verbose=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add_model_commands(commands)
    add_picture_commands(commands)
    add_job_commands(commands)
    return parser
