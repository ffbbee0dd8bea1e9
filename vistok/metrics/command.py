"""The options of the evaluation of reconstructions, for ``vistok eval recon`` and ``eval/reconstruction.py``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from vistok.data.sources import ImageSource


def add_reconstruction_arguments(parser: argparse.ArgumentParser, *, model_help: str = "", data_help: str = "") -> None:
    """Add the options; ``run_reconstruction`` reads them."""
    add = parser.add_argument
    add("--model", required=True, help=model_help or "a registered name, a Hugging Face id, or a folder or file")
    add("--data", required=True, help=data_help or "a source of pictures, as in folder:PATH or emoji:")
    add("--split", choices=("train", "val", "all"), help="of the data (default: val; all where none is held out)")
    add("--protocol", default="titok", help="a named protocol, or a file of one (%(default)s)")
    add("--limit", type=int, help="this many pictures, evenly spaced (default: all)")
    add("--batch-size", type=int, default=16, help="images at a time, in each process (%(default)s)")
    add("--length", type=int, help="keep this many leading tokens (ordered tokenizers only)")
    add(
        "--target",
        help="keep the fewest tokens that reach a quality, image by image: psnr=24 (ordered tokenizers only)",
    )
    add("--features", default="auto", choices=("auto", "inception", "lite0", "none"), help="of the Fréchet distance")
    add("--weights", help="file with the weights of the features")
    add("--no-lpips", action="store_true", help="leave LPIPS out")
    add("--no-download", action="store_true", help="do not ask the network for the weights of metrics")
    add("--caption", help="for conditional models, as in 'A photo of a {class name}.' or '{caption}'")
    add("--bootstrap", type=int, default=0, metavar="N", help="the distance's standard deviation from N resamples")
    add(
        "--cache",
        type=Path,
        help="folder to keep what was measured in: a killed run goes on; other settings are refused",
    )
    add("--workers", type=int, default=0, help="processes that read pictures (%(default)s)")
    add("--device", default="", help="cpu, cuda, cuda:1 ... (default: a GPU where there is one)")
    add("--json-file", type=Path, help="write the result here")


def run_reconstruction(
    args: argparse.Namespace,
    *,
    device: torch.device | str,
    say: Callable[[str], None],
    accelerator: Accelerator | None = None,
) -> dict[str, Any]:
    """Load, evaluate, write and show.

    Args:
        args: of ``add_reconstruction_arguments``.
        device: where the model goes.
        say: takes the table, on the main process.
        accelerator: shares the work between processes.
    Raises:
        VistokError: whatever cannot be used.
    """
    from vistok.hub import load_tokenizer
    from vistok.metrics.protocols import get_protocol
    from vistok.metrics.reconstruction import evaluate_reconstruction
    from vistok.metrics.result import format_table, save_result
    from vistok.models.target import Target

    protocol = get_protocol(args.protocol)  # before the model is loaded: a typing error should not take minutes
    target = None if args.target is None else Target.parse(args.target)
    source, split = open_evaluated(args.data, args.split)
    model = load_tokenizer(args.model, device=device)
    result = evaluate_reconstruction(
        model,
        source,
        protocol=protocol,
        batch_size=args.batch_size,
        limit=args.limit,
        length=args.length,
        target=target,
        accelerator=accelerator,
        features=args.features,
        weights=args.weights,
        lpips=not args.no_lpips,
        download=not args.no_download,
        caption=args.caption,
        bootstrap=args.bootstrap,
        cache=args.cache,
        num_workers=args.workers,
    )
    result["data"]["split"] = split
    if accelerator is None or accelerator.is_main_process:
        if args.json_file is not None:
            save_result(result, args.json_file)
        say(format_table(result))
    return result


def open_evaluated(spec: str, split: str | None) -> tuple[ImageSource, str]:
    """A source and its split: the one asked for, else what is held out, else all."""
    from vistok.data.sources import NoValSplitError, open_source

    if split is not None:
        return open_source(spec, split=split), split
    try:
        return open_source(spec, split="val"), "val"
    except NoValSplitError:  # a folder or shards that are the validation set themselves
        return open_source(spec, split="all"), "all"
