"""The options of ``vistok eval gen`` and ``eval/generation.py``: generated images against a reference."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator


_NUMBERS = {"fid", "fd", "sfid", "kid", "is", "score", "precision", "recall", "density", "coverage", "cmmd"}
_NUMBERS |= {"clip_score", "clip_cosine"}


def add_generation_arguments(parser: argparse.ArgumentParser, *, data_help: str = "") -> None:
    """Add the options; ``run_generation`` reads them."""
    add = parser.add_argument
    add("samples", help="a folder of `vistok generate`, an .npz of samples, or a source of pictures")
    add(
        "--reference",
        required=True,
        help=f"{data_help or 'a source of pictures'}; or an .npz of statistics (mu, sigma)",
    )
    add("--split", choices=("train", "val", "all"), help="of the reference (default: val; all where none is held out)")
    add("--protocol", default="titok", help="a named protocol, or a file of one (%(default)s)")
    add("--limit", type=int, help="this many samples, evenly spaced (default: all)")
    add(
        "--sample-size",
        type=int,
        metavar="SIDE",
        help="crop the samples to this side, as the protocol says (default: as they are)",
    )
    add("--batch-size", type=int, default=32, help="images at a time, in each process (%(default)s)")
    add(
        "--features",
        default="auto",
        choices=("auto", "inception", "lite0", "dinov2", "clip"),
        help="what is compared (%(default)s)",
    )
    add("--bootstrap", type=int, default=0, metavar="N", help="the distance's standard deviation from N resamples")
    add(
        "--captions",
        type=Path,
        metavar="FILE",
        help="a text a line, which the samples have in turn, for CLIPScore (default: those that `vistok generate` took)",
    )
    add("--no-clip-score", action="store_true", help="do not measure how well samples fit their texts")
    add("--cache", type=Path, help="folder to keep features in: a killed run goes on, and a reference is read once")
    add("--workers", type=int, default=0, help="processes that read pictures, for each process (%(default)s)")
    add("--skip-unreadable", action="store_true", help="leave out, and name, pictures that cannot be read")
    add("--weights", help="file with the weights of the features")
    add("--no-download", action="store_true", help="do not ask the network for the weights of metrics")
    add("--device", default="", help="cpu, cuda, cuda:1 ... (default: a GPU where there is one)")
    add("--json-file", type=Path, help="write the result here")


def run_generation(
    args: argparse.Namespace,
    *,
    device: torch.device | str,
    say: Callable[[str], None],
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Open, evaluate, write and show.

    Args:
        args: of ``add_generation_arguments``.
        device: where the features are computed.
        say: takes the figures, on the main process.
        accelerator: shares the work between processes.
        progress: show bars.
    Raises:
        VistokError: whatever cannot be used.
    """
    from vistok.metrics.generation import evaluate_generation
    from vistok.metrics.protocols import get_protocol
    from vistok.metrics.result import save_result
    from vistok.metrics.samples import open_reference, open_samples

    get_protocol(args.protocol)
    result = evaluate_generation(
        open_samples(args.samples, captions=args.captions),
        open_reference(args.reference, args.split),
        protocol=args.protocol,
        sample_size=args.sample_size,
        batch_size=args.batch_size,
        limit=args.limit,
        features=args.features,
        weights=args.weights,
        download=not args.no_download,
        bootstrap=args.bootstrap,
        clip_score=not args.no_clip_score,
        cache=args.cache,
        num_workers=args.workers,
        skip_unreadable=args.skip_unreadable,
        accelerator=accelerator,
        device=device,
        progress=progress,
    )
    main = accelerator is None or accelerator.is_main_process
    if args.json_file is not None and main:
        save_result(result, args.json_file)
    confidence = result["confidence"]
    for name in (key for key in result if key in _NUMBERS or key.rsplit("_", 1)[0] in _NUMBERS):
        if not isinstance(result[name], float):
            continue
        spread = f" +- {confidence[name]['std']:.2g} ({confidence[name]['from']})" if name in confidence else ""
        say(f"{name}  {result[name]:.4g}{spread}")
    samples, reference = result["samples"], result["reference"]
    say(
        f"{samples['size']} samples of {samples['spec']} against {reference.get('size') or reference.get('images')} of "
        f"{reference['spec']}, protocol {result['protocol']['name']}"
    )
    for note in result["notes"]:
        say(f"note: {note}")
    for name, reason in result["left_out"].items():
        say(f"left out: {name}: {reason}")
    return result
