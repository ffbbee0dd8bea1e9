"""The options of ``vistok eval reference`` and ``eval/reference.py``: statistics of pictures, as other evaluators read them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator


def add_reference_arguments(parser: argparse.ArgumentParser, *, data_help: str = "") -> None:
    """Add the options; ``run_reference`` reads them."""
    add = parser.add_argument
    add("data", help=data_help or "a source of pictures, as in folder:PATH or emoji:")
    add(
        "--out",
        type=Path,
        required=True,
        help="the .npz to write: mu, sigma, and mu_s, sigma_s where the network has them",
    )
    add("--split", choices=("train", "val", "all"), help="of the data (default: val; all where none is held out)")
    add("--protocol", default="adm-50k", help="a named protocol, or a file of one (%(default)s)")
    add("--size", type=int, help="crop pictures to this side, as the protocol says (default: as they are)")
    add("--limit", type=int, help="this many pictures, evenly spaced (default: all)")
    add("--images", action="store_true", help="also write the pictures (arr_0), for KID, precision and recall")
    add("--batch-size", type=int, default=32, help="images at a time, in each process (%(default)s)")
    add("--features", default="auto", choices=("auto", "inception", "lite0", "dinov2", "clip"), help="(%(default)s)")
    add("--weights", help="file with the weights of the features")
    add("--no-download", action="store_true", help="do not ask the network for the weights")
    add("--cache", type=Path, help="folder to keep features in: a killed run goes on")
    add("--workers", type=int, default=0, help="processes that read pictures, for each process (%(default)s)")
    add("--skip-unreadable", action="store_true", help="leave out, and name, pictures that cannot be read")
    add("--device", default="", help="cpu, cuda, cuda:1 ... (default: a GPU where there is one)")


def run_reference(
    args: argparse.Namespace,
    *,
    device: torch.device | str,
    say: Callable[[str], None],
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Open, measure, write.

    Args:
        args: of ``add_reference_arguments``.
        device: where the features are computed.
        say: takes what was written, on the main process.
        accelerator: shares the work between processes.
        progress: show a bar.
    Raises:
        VistokError: whatever cannot be used.
    """
    import torch

    from vistok.errors import ConfigError
    from vistok.metrics.command import open_evaluated
    from vistok.metrics.feature_set import FeatureWork
    from vistok.metrics.instruments import gather_instruments
    from vistok.metrics.protocols import get_protocol
    from vistok.metrics.reference import find_network, write_reference

    for option in ("batch_size", "limit", "size"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise ConfigError(f"--{option.replace('_', '-')} is 1 or more, got {value}")
    protocol = get_protocol(args.protocol)
    source, _ = open_evaluated(args.data, args.split)
    device = torch.device(device)
    found = gather_instruments(
        protocol,
        features=args.features,
        weights=args.weights,
        lpips=False,
        download=not args.no_download,
        accelerator=accelerator,
        device=device,
    )
    network = find_network(found)
    work = FeatureWork(
        network,
        tuple(layer for layer in network.layers if layer == "spatial"),
        batch_size=args.batch_size,
        num_workers=args.workers,
        accelerator=accelerator,
        device=device,
        cache=args.cache,
        skip_unreadable=args.skip_unreadable,
        progress=progress,
    )
    options = {"size": args.size, "limit": args.limit, "images": args.images}
    made = write_reference(source, args.out, protocol=protocol, work=work, found=found, **options)
    skipped = f", {len(made['skipped'])} skipped" if made["skipped"] else ""
    say(f"wrote {args.out}: {made['images']} images of {source.spec}{skipped}, features {network.name}")
    for note in found.notes:
        say(f"note: {note}")
    return {"out": str(args.out), "features": found.describe(), "notes": found.notes, **made}
