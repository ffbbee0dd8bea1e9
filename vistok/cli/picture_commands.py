"""``vistok reconstruct``, ``encode`` and ``decode``."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import Any

from vistok.cli.options import add_model, add_prior, chosen_device, command, given_prior, open_tokens, positive, say
from vistok.errors import VistokError


def add_picture_commands(commands: Any) -> None:
    """Add them to the subparsers."""
    sub = command(
        commands,
        "reconstruct",
        _reconstruct,
        "originals and reconstructions in one picture",
        "vistok reconstruct cat.jpg dog.png --model titok_l32.imagenet --out grid.png",
    )
    _add_images(sub)
    sub.add_argument("--out", type=Path, default=Path("reconstructions.png"), help="the picture to write (%(default)s)")
    sub.add_argument("--lengths", type=_numbers, help="token counts to show, as 1,4,16,32 (ordered tokenizers only)")

    sub = command(
        commands,
        "encode",
        _encode,
        "pictures to a .vtk token file",
        "vistok encode photos/ --model runs/tiny/final --out photos.vtk\n"
        "  vistok encode photos/ --model runs/tiny/final --target psnr=24 --entropy static --out photos.vtk",
    )
    _add_images(sub)
    sub.add_argument("--out", type=Path, required=True, help="the .vtk file to write")
    many = sub.add_mutually_exclusive_group()
    many.add_argument("--length", type=positive, help="keep this many leading tokens (ordered tokenizers only)")
    many.add_argument(
        "--target",
        help="keep the fewest tokens that reach a quality, image by image: psnr=24, lpips=0.2 (ordered tokenizers only)",
    )
    sub.add_argument(
        "--entropy",
        metavar="static|PRIOR",
        help="entropy-code the ids with their own frequencies, or with a prior: the file of a table, or an autoregressive "
        "generator (needs the extra [codec])",
    )

    sub = command(
        commands,
        "decode",
        _decode,
        "a .vtk token file to pictures",
        "vistok decode photos.vtk --model runs/tiny/final --out decoded/",
    )
    sub.add_argument("tokens", type=Path, help="a .vtk file")
    add_model(sub)
    sub.add_argument("--out", type=Path, required=True, help="folder for the PNG files")
    sub.add_argument("--length", type=positive, help="decode only this many leading tokens (ordered tokenizers only)")
    sub.add_argument("--index", type=_indices, help="only these images, counted from 0: 3 or 0,5,7")
    sub.add_argument("--names", action="store_true", help="call the pictures as they were called when encoded")
    sub.add_argument("--recover", action="store_true", help="decode what is left of a file that is cut or damaged")
    add_prior(sub)


def _load(args: argparse.Namespace) -> Any:
    from vistok.hub import load_tokenizer

    return load_tokenizer(args.model, device=chosen_device(args.device))


def _condition(model: Any, caption: str, count: int) -> Any:
    if not model.conditional:
        return None
    from vistok.models.text import ClipTextFeatures

    return ClipTextFeatures()([caption] * count)


def _reconstruct(args: argparse.Namespace) -> dict[str, Any]:
    from vistok.report.reconstruction import reconstruction_grid

    model = _load(args)
    names, images = _read_images(args, model)
    condition = _condition(model, args.caption, len(images))
    grid, rows = reconstruction_grid(
        model, images, lengths=args.lengths, names=names, condition=condition, batch_size=args.batch_size
    )
    _save_picture(grid, args.out)
    for row in rows:
        say(
            args,
            f"{row['name']}: " + ", ".join(f"{length} tokens {value:.2f} dB" for length, value in row["psnr"].items()),
        )
    say(args, f"wrote {args.out} ({args.crop} crop to {model.image_size} pixels)")
    return {"out": str(args.out), "crop": args.crop, "image_size": model.image_size, "images": rows}


def _read_images(args: argparse.Namespace, model: Any) -> tuple[list[str], Any]:
    from vistok.data import load_images
    from vistok.data.images import image_files

    paths: list[Path] = []
    for text in args.images:
        path = Path(text)
        paths += image_files(path) if path.is_dir() else [path]
    if not paths:
        raise VistokError(f"there are no pictures in {', '.join(args.images)}")
    return [path.name for path in paths], load_images(paths, like=model, crop=args.crop)


def _save_picture(image: Any, path: Path) -> None:
    from vistok.report.grid import save_image

    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(image, path)


def _encode(args: argparse.Namespace) -> dict[str, Any]:
    from vistok.models.target import Target
    from vistok.transcode import encode_files

    target = None if args.target is None else Target.parse(args.target)  # before the model is loaded
    result = encode_files(
        _load(args),
        args.images,
        args.out,
        length=args.length,
        target=target,
        entropy=args.entropy,
        crop=args.crop,
        batch_size=args.batch_size,
        progress=not args.json,
    )
    say(
        args,
        f"wrote {args.out}: {len(result['images'])} images, {result['tokens_per_image']:.4g} tokens and "
        f"{result['bytes_per_image']:.4g} bytes each, {result['bytes']} bytes in all",
    )
    for key, text in (
        ("unreadable", "could not be read"),
        ("not_reached", "do not reach the target and keep all tokens"),
    ):
        if result[key]:
            say(args, f"{len(result[key])} {text}: {', '.join(result[key][:5])}")
    return result


def _decode(args: argparse.Namespace) -> dict[str, Any]:
    from vistok.token_file import TokenFile
    from vistok.transcode import decode_file

    with contextlib.ExitStack() as stack:
        if args.recover:
            if args.names:
                raise VistokError(
                    "the names are at the end of a token file, which --recover does without; leave --names away"
                )
            tokens: Any = TokenFile.recover(args.tokens, prior=given_prior(args))
            if not tokens:
                raise VistokError(f"{args.tokens} holds no whole beginning of an image")
            made_by = tokens[0]
        else:
            tokens = stack.enter_context(open_tokens(args, args.tokens))
            made_by = tokens.layout
        model = _load(args)
        if made_by.weight_hash and made_by.weight_hash != model.weight_hash():
            print(
                f"vistok: warning: {args.tokens} was encoded with other weights ({made_by.model or made_by.family} "
                f"{made_by.weight_hash}) than {args.model} has ({model.weight_hash()})",
                file=sys.stderr,
            )
        written = decode_file(
            model,
            tokens,
            args.out,
            rows=args.index,
            length=args.length,
            names=args.names,
            condition=lambda count: _condition(model, args.caption, count),
            batch_size=args.batch_size,
            progress=not args.json,
        )
    say(args, f"wrote {len(written)} pictures to {args.out}")
    return {"out": str(args.out), "pictures": [str(path) for path in written]}


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", help="picture files or folders of any size and format")
    add_model(parser)
    parser.add_argument(
        "--crop",
        default="center",
        choices=("center", "arc", "squash", "pad"),
        help="how pictures become square (%(default)s)",
    )


def _indices(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"numbers from 0 on are wanted, as 3 or 0,5,7; got {text!r}")
    return [int(part) for part in parts]


def _numbers(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]
