"""The options of rate-distortion curves, for ``vistok eval curve`` and ``eval/curve.py``."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vistok.errors import VistokError

if TYPE_CHECKING:
    import torch

    from vistok.data.sources import ImageSource
    from vistok.models.base import Tokenizer


def add_curve_arguments(parser: argparse.ArgumentParser, *, model_help: str = "", data_help: str = "") -> None:
    """Add the options; ``run_curve`` reads them."""
    add = parser.add_argument
    model_help = model_help or "a registered name, a Hugging Face id, or a folder or file"
    add(
        "--model",
        action="append",
        required=True,
        metavar="[NAME=]MODEL",
        help=f"{model_help}; may be given several times",
    )
    add("--data", required=True, help=data_help or "a source of pictures, as in folder:PATH or emoji:")
    add("--split", choices=("train", "val", "all"), help="of the data (default: val; all where none is held out)")
    add("--protocol", default="titok", help="a named protocol (%(default)s)")
    add("--limit", type=int, help="this many pictures, evenly spaced (default: all)")
    add("--batch-size", type=int, default=16, help="images at a time (%(default)s)")
    add("--lengths", help="token counts, as 1,4,16 (default: 1, 2, 4, ... and all)")
    add("--codecs", default="jpeg,webp,avif", help="to compare with (%(default)s; none for none)")
    add("--no-downscale", action="store_true", help="codecs code pictures at full size only")
    add("--features", default="none", choices=("auto", "inception", "lite0", "none"), help="of a Fréchet distance")
    add("--weights", help="file with the weights of the features")
    add("--perceptual", default="auto", choices=("auto", "lpips", "lite0", "none"), help="distance (%(default)s)")
    add("--no-download", action="store_true", help="do not ask the network for the weights of metrics")
    add(
        "--decode",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="for models whose decoding has options, as steps=10",
    )
    add("--caption", help="for conditional models, as in 'A photo of a {class name}.' or '{caption}'")
    add("--strip", type=int, default=4, help="pictures shown coarse to fine (%(default)s; 0 for none)")
    add("--device", default="", help="cpu, cuda, cuda:1 ... (default: a GPU where there is one)")
    add("--out", type=Path, help="folder for curve.json, curve.png, curve.html and strips")


def run_curve(
    args: argparse.Namespace, *, device: torch.device | str, say: Callable[[str], None], progress: bool = True
) -> dict[str, Any]:
    """Load, evaluate, write and show.

    Args:
        args: of ``add_curve_arguments``.
        device: where the models go.
        say: takes the table.
        progress: show bars.
    Returns:
        the result, with ``files`` where an output folder was named.
    Raises:
        VistokError: whatever cannot be used.
    """
    from vistok.hub import load_tokenizer
    from vistok.metrics.codecs import find_codecs
    from vistok.metrics.command import open_evaluated
    from vistok.metrics.curve import evaluate_curve
    from vistok.metrics.protocols import get_protocol
    from vistok.metrics.result import save_result
    from vistok.report.arguments import named_models, option_value
    from vistok.report.curve import format_curve, write_curve

    # Before models are loaded: a typing error should not take minutes.
    get_protocol(args.protocol)
    lengths = None if args.lengths is None else _numbers(args.lengths)
    codecs = () if args.codecs == "none" else tuple(args.codecs.split(","))
    find_codecs(codecs)
    options = dict(option_value(text, flag="--decode", example="steps=10") for text in args.decode)
    source, split = open_evaluated(args.data, args.split)
    tokenizers = {name: load_tokenizer(where, device=device) for name, where in named_models(args.model)}
    result = evaluate_curve(
        tokenizers,
        source,
        lengths=lengths,
        protocol=args.protocol,
        batch_size=args.batch_size,
        limit=args.limit,
        codecs=codecs,
        downscale=not args.no_downscale,
        features=args.features,
        weights=args.weights,
        perceptual=args.perceptual,
        download=not args.no_download,
        decode_options=options,
        caption=args.caption,
        progress=progress,
    )
    result["data"]["split"] = split
    if args.out is not None:
        strips = {}
        if args.strip > 0:
            strips = {
                name: _strip(model, source, args.strip, result, options)
                for name, model in tokenizers.items()
                if not model.conditional
            }
        files = write_curve(result, args.out, strips=strips)
        save_result(result, args.out / "curve.json")
        result = result | {"files": files | {"result": str(args.out / "curve.json")}}
    say(format_curve(result))
    if args.out is not None:
        say(f"wrote {', '.join(result['files'].values())}")
    return result


def _strip(model: Tokenizer, source: ImageSource, count: int, result: dict[str, Any], options: dict[str, Any]) -> Any:
    """Evenly spaced pictures of those that can be read."""
    from vistok.data import load_images
    from vistok.errors import DataError
    from vistok.report.strip import length_strip

    protocol, images = result["protocol"], []
    for index in range(len(source)):
        try:
            images.append(source.image(index * max(1, len(source) // count) % len(source)))
        except DataError:
            continue
        if len(images) == count:
            break
    crop = {"crop": protocol["crop"], "interpolation": protocol["interpolation"]}
    known = inspect.signature(model.decode).parameters
    own = {key: value for key, value in options.items() if key in known}
    return length_strip(model, load_images(images, like=model, **crop).to(model.device), decode_options=own)


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise VistokError(f"--lengths takes numbers of 1 or more, as 1,4,16; got {text!r}")
    return sorted({int(part) for part in parts})
