"""What the commands have in common: help, options of models, and what becomes of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vistok.errors import VistokError

MODEL_HELP = "a registered name (vistok models), a Hugging Face id, or a folder or file on this machine"
DATA_HELP = "folder:PATH, emoji:, emoji:CATEGORY, photos:, wds:PATTERN, hfds:NAME or random:COUNT"


def command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], Any] | None, text: str, example: str
) -> argparse.ArgumentParser:
    """A new subcommand with the options that all have; ``run`` None is for one with subcommands of its own."""
    parser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if run is not None:
        parser.set_defaults(run=run)
        parser.add_argument("--json", action="store_true", help="print the result as JSON")
        parser.add_argument("--debug", action="store_true", help="show the full traceback of an error")
        parser.add_argument("--verbose", action="store_true", help="log what is being done")
    return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    """The options of commands that load one tokenizer."""
    parser.add_argument("--model", required=True, help=MODEL_HELP)
    parser.add_argument("--device", default="", help="cpu, cuda, cuda:1 ... (default: a GPU where there is one)")
    parser.add_argument("--batch-size", type=positive, default=16, help="images at a time (%(default)s)")
    parser.add_argument("--caption", default="", help="text for models that decode with text (one for all images)")


def positive(text: str) -> int:
    """A whole number of 1 or more, as argparse's ``type``."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a number of 1 or more is wanted, got {text!r}")
    return int(text)


def say(args: argparse.Namespace, text: str) -> None:
    """Print, unless the result is printed as JSON."""
    if not args.json:
        print(text)


def chosen_device(name: str) -> str:
    """The device that ``--device`` names; the best one here for ""."""
    import torch

    if not name:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).cpu()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise VistokError(
            f"--device {name} cannot be used here ({reason}); leave --device away to use what is here"
        ) from error
    return name


def add_prior(parser: argparse.ArgumentParser) -> None:
    """The option of commands that read token files."""
    parser.add_argument(
        "--prior", help="what a .vtk file was entropy-coded with, if not inside: the file of a table, or a generator"
    )


def given_prior(args: argparse.Namespace) -> Any:
    """What ``--prior`` names, loaded."""
    from vistok.transcode import load_prior

    return None if args.prior is None else load_prior(args.prior)


def open_tokens(args: argparse.Namespace, path: str | Path) -> Any:
    """A token file, to be used in a ``with``."""
    from vistok.token_file import TokenFile

    return TokenFile.open(path, prior=given_prior(args))
