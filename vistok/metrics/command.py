"""Command-line arguments of measuring, shared by ``vistok eval recon`` and ``eval/reconstruction.py``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vistok.metrics.protocols import DEFAULT, get_protocol, list_protocols


def add_reconstruction_arguments(parser: argparse.ArgumentParser, *, model_help: str, data_help: str) -> None:
    """The arguments of ``run_reconstruction``."""
    parser.add_argument("--model", required=True, help=model_help)
    parser.add_argument("--data", required=True, help=data_help)
    parser.add_argument("--protocol", default=DEFAULT, help=f"one of {', '.join(list_protocols())} (default: %(default)s)")
    parser.add_argument("--split", choices=("train", "val", "all"), help="of the data (default: the protocol's)")
    parser.add_argument("--limit", type=int, help="only the first so many pictures")
    parser.add_argument("--lengths", help="leading tokens to decode, as 1,4,16 (ordered tokenizers); one result each")
    parser.add_argument("--batch-size", type=int, default=16, help="images at a time and process (%(default)s)")
    parser.add_argument("--features", choices=("auto", "inception", "lite0", "none"), help="network of the Frechet distance")
    parser.add_argument("--weights", type=Path, help="a file of Inception weights")
    parser.add_argument("--no-lpips", action="store_true", help="leave LPIPS out")
    parser.add_argument("--caption", help='text for text-aware tokenizers; "{class}" in it is the class name')
    parser.add_argument("--device", default="", help="cpu, cuda ... (default: a GPU where there is one)")
    parser.add_argument("--json-file", type=Path, help="write the result here")


def run_reconstruction(args: argparse.Namespace, *, device: str, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Measure as the arguments say; prints a table, writes the JSON file, returns the results."""
    from accelerate import PartialState

    from vistok.data import open_source
    from vistok.errors import VistokError
    from vistok.hub import from_pretrained
    from vistok.metrics.reconstruction import evaluate_reconstruction, format_table, write_json
    from vistok.models.base import Tokenizer

    protocol = get_protocol(args.protocol)
    state = PartialState(cpu=device == "cpu")
    tokenizer = from_pretrained(args.model, device=state.device if device in ("cpu", "cuda") else device)
    if not isinstance(tokenizer, Tokenizer):
        raise VistokError(f"{args.model} is a {type(tokenizer).__name__}, and reconstructions are a tokenizer's")
    source = open_source(args.data, split=args.split or protocol.split)
    lengths = [int(part) for part in args.lengths.split(",")] if args.lengths else [None]
    results = [
        evaluate_reconstruction(
            tokenizer,
            source,
            protocol=protocol,
            batch_size=args.batch_size,
            limit=args.limit,
            length=length,
            captions=args.caption,
            features=args.features,
            weights=args.weights,
            lpips=not args.no_lpips,
            accelerator=state if state.num_processes > 1 else None,
        )
        for length in lengths
    ]
    if state.is_main_process:
        say(format_table(results))
        for what, reason in results[0]["missing"].items():
            say(f"{what}: {reason}")
        if args.json_file:
            write_json(results if len(results) > 1 else results[0], args.json_file)
            say(f"wrote {args.json_file}")
    return results
