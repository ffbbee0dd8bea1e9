"""The options of ``vistok complexity``: how many tokens each picture of a folder needs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vistok.errors import VistokError

if TYPE_CHECKING:
    import torch


def add_complexity_arguments(parser: argparse.ArgumentParser, *, model_help: str = "") -> None:
    """Add the options; ``run_complexity`` reads them."""
    add = parser.add_argument
    model_help = model_help or "a registered name, a Hugging Face id, or a folder or file"
    add("photos", help="a folder of pictures, or a source as photos: or emoji:")
    add(
        "--model",
        action="append",
        required=True,
        metavar="[NAME=]MODEL",
        help=f"{model_help}; adaptive (KARL, ALIT) or ordered (One-D-Piece, FlexTok, ...); several are compared, and the "
        "first one sorts",
    )
    add(
        "--target-error",
        default="0.05,0.1",
        help="wanted mean absolute errors of values in [0, 1], as 0.05,0.1 (default: %(default)s)",
    )
    add("--split", choices=("train", "val", "all"), default="all", help="of the pictures (%(default)s)")
    add("--protocol", default="titok", help="a named protocol: how pictures are cropped (%(default)s)")
    add("--limit", type=int, help="this many pictures, evenly spaced (default: all)")
    add("--batch-size", type=int, default=16, help="images at a time (%(default)s)")
    add("--device", default="", help="cpu, cuda, cuda:1 ... (default: a GPU where there is one)")
    add("--out", type=Path, help="folder for complexity.json, .csv, .png and .html")


def run_complexity(
    args: argparse.Namespace, *, device: torch.device | str, say: Callable[[str], None], progress: bool = True
) -> dict[str, Any]:
    """Load, measure, write and show.

    Args:
        args: of ``add_complexity_arguments``.
        device: where the models go.
        say: takes the table.
        progress: show bars.
    Returns:
        the result, with ``files`` where an output folder was named.
    Raises:
        VistokError: whatever cannot be used.
    """
    from vistok.data.sources import open_source
    from vistok.hub import load_tokenizer
    from vistok.metrics.complexity import measure_complexity
    from vistok.metrics.protocols import get_protocol
    from vistok.metrics.result import save_result
    from vistok.report.arguments import named_models
    from vistok.report.complexity import format_complexity, write_complexity

    # Before models are loaded: a typing error should not take minutes.
    get_protocol(args.protocol)
    errors = _errors(args.target_error)
    source = open_source(f"folder:{args.photos}" if Path(args.photos).is_dir() else args.photos, split=args.split)
    tokenizers = {name: load_tokenizer(where, device=device) for name, where in named_models(args.model)}
    result = measure_complexity(
        tokenizers,
        source,
        errors=errors,
        protocol=args.protocol,
        batch_size=args.batch_size,
        limit=args.limit,
        progress=progress,
    )
    if args.out is not None:
        files = write_complexity(result, args.out, source=source, tokenizers=tokenizers)
        save_result(result, args.out / "complexity.json")
        result = result | {"files": files | {"result": str(args.out / "complexity.json")}}
    say(format_complexity(result))
    if args.out is not None:
        say(f"wrote {', '.join(result['files'].values())}")
    return result


def _errors(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise VistokError(f"--target-error takes numbers, as 0.05,0.1; got {text!r}") from error
