"""The options of ``vistok tokenize`` and ``train/token_shards.py``: a source of pictures as token shards."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vistok.errors import VistokError

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

_LISTED = 5  # unreadable pictures and damaged shards that are named


def add_tokenize_arguments(parser: argparse.ArgumentParser, *, model_help: str = "", data_help: str = "") -> None:
    """Add the options; ``run_tokenize`` reads them."""
    add = parser.add_argument
    model_help = model_help or "a registered name, a Hugging Face id, or a folder or file"
    add("--model", help=f"the tokenizer: {model_help}")
    add("--data", help=data_help or "a source of pictures, as in folder:PATH or emoji:")
    add("--out", type=Path, help="folder of the shards; a killed run goes on where it was")
    add(
        "--check", type=Path, metavar="DIR", help="instead: compare every byte of a folder of shards with its checksums"
    )
    add("--split", default="train", choices=("train", "val", "all"), help="of the data (%(default)s)")
    add(
        "--views",
        default="center",
        help="center, flip (it and its mirror image), ten_crop, ten_crop:1.05, random:N, or several joined by + (%(default)s)",
    )
    add("--crop", default="center", choices=("center", "arc", "squash", "pad"), help="(%(default)s)")
    add("--interpolation", default="bicubic", help="of the crop (%(default)s)")
    add("--seed", type=int, default=0, help="of random views and of continuous latents (%(default)s)")
    add("--limit", type=int, help="this many pictures, evenly spaced (default: all)")
    add("--shard-size", type=int, default=4096, help="pictures a shard (%(default)s)")
    add("--batch-size", type=int, default=64, help="views at a time, in each process (%(default)s)")
    add("--workers", type=int, default=0, help="processes that read pictures (%(default)s)")
    add("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the tokenizer (%(default)s)")
    add("--device", default="", help="cpu, cuda, cuda:1 ... (default: a GPU where there is one)")


def run_tokenize(
    args: argparse.Namespace,
    *,
    device: torch.device | str,
    say: Callable[[str], None],
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Load, tokenize, write; or check what is written.

    Args:
        args: of ``add_tokenize_arguments``.
        device: where the tokenizer goes.
        say: takes what was written, on the main process.
        accelerator: shares the work between processes.
        progress: show a bar.
    Returns:
        counts of what is in the folder.
    Raises:
        VistokError: whatever cannot be used; with ``--check``, damage.
    """
    given = [name for name in ("model", "data", "out") if getattr(args, name) is not None]
    if args.check is not None:
        if given:
            raise VistokError(f"--check looks at shards that are there; leave --{given[0]} away")
        return _check(args.check, say, progress)
    if len(given) < 3:
        wanted = " and ".join(f"--{name}" for name in ("model", "data", "out") if name not in given)
        raise VistokError(f"vistok tokenize wants {wanted}; or --check DIR")
    return _tokenize(args, device, say, accelerator, progress)


def _tokenize(
    args: argparse.Namespace,
    device: torch.device | str,
    say: Callable[[str], None],
    accelerator: Accelerator | None,
    progress: bool,
) -> dict[str, Any]:
    import torch

    from vistok.data.shard_writer import write_token_shards
    from vistok.data.sources import open_source
    from vistok.data.views import Views
    from vistok.hub import load_tokenizer

    Views(args.views, 1, args.crop, args.interpolation)  # before the model is loaded
    source = open_source(args.data, split=args.split)
    manifest = write_token_shards(
        load_tokenizer(args.model, device=device),
        source,
        args.out,
        split=args.split,
        views=args.views,
        crop=args.crop,
        interpolation=args.interpolation,
        seed=args.seed,
        shard_size=args.shard_size,
        limit=args.limit,
        batch_size=args.batch_size,
        num_workers=args.workers,
        dtype=getattr(torch, args.dtype),
        accelerator=accelerator,
        progress=progress,
    )
    names = [name for shard in manifest.shards for name in shard.unreadable]
    rows = manifest.pictures * manifest.recipe["num_views"]
    result = {"folder": str(args.out), "shards": len(manifest.shards), "images": manifest.pictures, "rows": rows}
    say(f"{args.out}: {result['shards']} shards, {result['images']} images, {rows} rows of tokens")
    if names:
        say(f"{len(names)} could not be read and are left out: {', '.join(names[:_LISTED])}")
    return result | {"unreadable": len(names)}


def _check(folder: Path, say: Callable[[str], None], progress: bool) -> dict[str, Any]:
    from tqdm.auto import tqdm

    from vistok.data.token_shards import check_shards

    with tqdm(unit="image", disable=not progress) as bar:
        report = check_shards(folder, progress=bar.update)
    if report["damaged"]:
        count = len(report["damaged"])
        raise VistokError(
            f"{folder}: {count} of {report['shards']} shards are damaged: {'; '.join(report['damaged'][:_LISTED])}. The same "
            "`vistok tokenize` makes them again"
        )
    say(f"{folder}: {report['shards']} shards, {report['images']} images, {report['rows']} rows of tokens; all whole")
    return report
