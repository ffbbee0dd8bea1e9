"""``vistok ...``: a thin door to the library's functions."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vistok.errors import VistokError

_MODEL_HELP = "a registered name (vistok models), a Hugging Face id, or a folder or file on this machine"
_LISTED = 20  # images of a token file that `info` shows
_DATA_HELP = "folder:PATH, emoji:, emoji:CATEGORY, photos:, wds:PATTERN, hfds:NAME or random:COUNT"


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
    parser = argparse.ArgumentParser(
        prog="vistok",
        description="One-dimensional and variable-length image tokenizers: load, train, measure, generate, search.",
        epilog="Start with: vistok models; vistok info titok_l32.imagenet; vistok COMMAND --help",
    )
    parser.set_defaults(json=False, debug=False, verbose=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    sub = _command(commands, "models", _models, "list registered models", "vistok models 'titok_*' --kind tokenizer")
    sub.add_argument("pattern", nargs="?", default="*", help="a glob over names (default: all)")
    sub.add_argument("--kind", choices=("tokenizer", "generator"), help="only this kind")
    sub.add_argument("--all", action="store_true", help="also published models that this version cannot build yet")
    sub.add_argument("--markdown", action="store_true", help="print the README's table of tokenizers")

    sub = _command(
        commands, "info", _info, "what is known about a model or a .vtk file", "vistok info titok_s128.imagenet"
    )
    sub.add_argument("what", help=f"{_MODEL_HELP}; or a .vtk token file")
    _add_prior(sub)

    sub = _command(
        commands,
        "convert",
        _convert,
        "convert a checkpoint between published layouts and vistok's",
        "vistok convert tokenizer_titok_l32.bin titok_l32/\n  vistok convert titok_l32/ titok_l32.safetensors --to published",
    )
    sub.add_argument("source", help=_MODEL_HELP)
    sub.add_argument("target", type=Path, help="a folder (vistok layout) or a .safetensors file (published layout)")
    sub.add_argument(
        "--to", choices=("vistok", "published"), default="vistok", help="layout to write (default: vistok)"
    )

    sub = _command(
        commands,
        "reconstruct",
        _reconstruct,
        "originals and reconstructions in one picture",
        "vistok reconstruct cat.jpg dog.png --model titok_l32.imagenet --out grid.png",
    )
    _add_images(sub)
    sub.add_argument("--out", type=Path, default=Path("reconstructions.png"), help="the picture to write (%(default)s)")
    sub.add_argument("--lengths", type=_numbers, help="token counts to show, as 1,4,16,32 (ordered tokenizers only)")

    sub = _command(
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
    many.add_argument("--length", type=_positive, help="keep this many leading tokens (ordered tokenizers only)")
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

    sub = _command(
        commands,
        "decode",
        _decode,
        "a .vtk token file to pictures",
        "vistok decode photos.vtk --model runs/tiny/final --out decoded/",
    )
    sub.add_argument("tokens", type=Path, help="a .vtk file")
    _add_model(sub)
    sub.add_argument("--out", type=Path, required=True, help="folder for the PNG files")
    sub.add_argument("--length", type=_positive, help="decode only this many leading tokens (ordered tokenizers only)")
    sub.add_argument("--index", type=_indices, help="only these images, counted from 0: 3 or 0,5,7")
    sub.add_argument("--names", action="store_true", help="call the pictures as they were called when encoded")
    sub.add_argument("--recover", action="store_true", help="decode what is left of a file that is cut or damaged")
    _add_prior(sub)

    sub = _command(
        commands,
        "tokenize",
        _tokenize,
        "a data set of pictures to token shards, for training generators; resumes where it stopped",
        "vistok tokenize --model runs/titok_tiny/final --data emoji: --views flip --out outputs/tokens",
    )
    from vistok.report.tokenize_command import add_tokenize_arguments

    add_tokenize_arguments(sub, model_help=_MODEL_HELP, data_help=_DATA_HELP)

    sub = _command(
        commands,
        "train",
        _train,
        "run a training configuration; resumes where it stopped",
        "vistok train configs/titok/tiny.yaml steps=200 optimizer.lr=1e-3\n"
        "  accelerate launch train/tokenizer.py configs/titok/tiny.yaml     # several processes",
    )
    sub.add_argument("config", type=Path, help="a YAML file; see configs/")
    sub.add_argument("overrides", nargs="*", help="a.b=value, read as YAML")
    sub.add_argument("--no-resume", action="store_true", help="start anew; the run's checkpoints are removed")
    sub.add_argument("--dry-run", action="store_true", help="two small steps on random pictures, offline")

    sub = _command(commands, "eval", None, "measure models", "vistok eval recon --model runs/tiny/final --data emoji:")
    measures = sub.add_subparsers(metavar="WHAT", required=True)
    sub = _command(
        measures,
        "recon",
        _eval_recon,
        "reconstruction: PSNR, SSIM, LPIPS, Frechet distance, codebook, speed",
        "vistok eval recon --model titok_s128.imagenet --data folder:imagenet/val --json-file result.json",
    )
    from vistok.metrics.command import add_reconstruction_arguments

    add_reconstruction_arguments(sub, model_help=_MODEL_HELP, data_help=_DATA_HELP)

    sub = _command(
        measures,
        "curve",
        _eval_curve,
        "quality against tokens and bytes, beside JPEG, WebP and AVIF",
        "vistok eval curve --model runs/a/final --model runs/b/final --data emoji: --out outputs/curve",
    )
    from vistok.report.curve_command import add_curve_arguments

    add_curve_arguments(sub, model_help=_MODEL_HELP, data_help=_DATA_HELP)

    sub = _command(
        measures,
        "gen",
        _eval_gen,
        "generated images: the Fréchet distance from a reference (gFID)",
        "vistok eval gen outputs/samples --reference folder:imagenet/val --json-file result.json",
    )
    from vistok.metrics.generation_command import add_generation_arguments

    add_generation_arguments(sub, data_help=_DATA_HELP)

    sub = _command(
        measures,
        "reference",
        _eval_reference,
        "statistics of pictures, as vistok, pytorch-fid, clean-fid and ADM read them",
        "vistok eval reference folder:imagenet/val --size 256 --images --out imagenet256_val.npz",
    )
    from vistok.metrics.reference_command import add_reference_arguments

    add_reference_arguments(sub, data_help=_DATA_HELP)

    from vistok.metrics.results_command import add_protocols_arguments, add_self_check_arguments
    from vistok.report.compare_command import add_compare_arguments

    example = "vistok eval protocols adm-50k clean-fid"
    add_protocols_arguments(_command(measures, "protocols", _eval_protocols, "named ways to measure", example))
    text = "what must hold of an evaluator, tried on this machine"
    add_self_check_arguments(_command(measures, "self-check", _eval_self_check, text, "vistok eval self-check"))

    text = "results side by side, beside published figures; refuses to mix protocols"
    add_compare_arguments(_command(commands, "compare", _compare, text, "vistok compare a.json b.json"))

    sub = _command(
        commands,
        "generate",
        _generate,
        "images out of a generator: any number, balanced over classes or prompts, resumable",
        "vistok generate --model runs/digit_ar_tiny/final --tokenizer runs/titok_tiny/final --num 64 --out outputs/samples",
    )
    from vistok.report.generate_command import add_generate_arguments

    add_generate_arguments(sub, model_help=_MODEL_HELP)

    sub = _command(
        commands,
        "search",
        _search,
        "test-time search: the best of many candidates for each class or prompt, and scores against cost; resumable",
        "vistok search --model runs/digit_ar_tiny/final --method best_of_n --method beam --budgets 1,8,32 --out outputs/search",
    )
    from vistok.report.search_command import add_search_arguments

    add_search_arguments(sub, model_help=_MODEL_HELP)

    sub = _command(
        commands,
        "complexity",
        _complexity,
        "how many tokens each picture needs; sorts them from simple to complex",
        "vistok complexity photos/ --model runs/karl_tiny/final --target-error 0.05,0.1 --out outputs/complexity",
    )
    from vistok.report.complexity_command import add_complexity_arguments

    add_complexity_arguments(sub, model_help=_MODEL_HELP)

    sub = _command(
        commands,
        "serve",
        _serve,
        "a page to play with: cut tokens, count them, generate and search",
        "vistok serve --port 7860",
    )
    from vistok.serve.command import add_serve_arguments

    add_serve_arguments(sub, model_help=_MODEL_HELP)

    sub = _command(commands, "doctor", _doctor, "check this installation", "vistok doctor")

    sub = _command(
        commands,
        "demo",
        _demo,
        "reconstruct, count tokens, generate, search and fine-tune with the models that come along; one report",
        "vistok demo my_photos/ --out outputs/demo",
    )
    sub.add_argument("pictures", nargs="*", type=Path, help="your own pictures, files or folders, to be in the report")
    sub.add_argument("--out", type=Path, default=Path("outputs/demo"), help="folder of the report (%(default)s)")
    sub.add_argument(
        "--train",
        action="store_true",
        help="from nothing: trains a tokenizer and a generator on emoji, some four minutes",
    )
    sub.add_argument("--quick", action="store_true", help="a few steps only: shows that all of it runs")
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], Any] | None, text: str, example: str
) -> argparse.ArgumentParser:
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


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help=_MODEL_HELP)
    parser.add_argument("--device", default="", help="cpu, cuda, cuda:1 ... (default: a GPU where there is one)")
    parser.add_argument("--batch-size", type=_positive, default=16, help="images at a time (%(default)s)")
    parser.add_argument("--caption", default="", help="text for models that decode with text (one for all images)")


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", help="picture files or folders of any size and format")
    _add_model(parser)
    parser.add_argument(
        "--crop",
        default="center",
        choices=("center", "arc", "squash", "pad"),
        help="how pictures become square (%(default)s)",
    )


def _add_prior(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prior", help="what a .vtk file was entropy-coded with, if not inside: the file of a table, or a generator"
    )


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a number of 1 or more is wanted, got {text!r}")
    return int(text)


def _indices(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"numbers from 0 on are wanted, as 3 or 0,5,7; got {text!r}")
    return [int(part) for part in parts]


def _numbers(text: str) -> list[int]:
    return [_positive(part) for part in text.split(",")]


def _say(args: argparse.Namespace, text: str) -> None:
    if not args.json:
        print(text)


def _device(name: str) -> str:
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


def _load(args: argparse.Namespace) -> Any:
    from vistok.hub import load_tokenizer

    return load_tokenizer(args.model, device=_device(args.device))


def _condition(model: Any, caption: str, count: int) -> Any:
    if not model.conditional:
        return None
    from vistok.models.text import ClipTextFeatures

    return ClipTextFeatures()([caption] * count)


def _models(args: argparse.Namespace) -> list[dict[str, Any]]:
    from vistok.registry import get_card, list_models, markdown_table
    from vistok.report.table import text_table

    if args.markdown:
        _say(args, markdown_table())
        return []
    found = [get_card(name) for name in list_models(args.pattern, kind=args.kind, buildable=not args.all)]
    rows = [
        [
            card.name,
            card.family,
            card.kind,
            ", ".join(f"{k} {v:g}" for k, v in card.metrics.items()),
            card.licence,
            card.hub_id,
        ]
        for card in found
    ]
    _say(args, text_table(["name", "family", "kind", "published", "licence", "hub id"], rows))
    return [_card_dict(card) for card in found]


def _card_dict(card: Any) -> dict[str, Any]:
    from dataclasses import fields

    out = {field.name: getattr(card, field.name) for field in fields(card)}
    return {key: dict(value) if hasattr(value, "keys") else value for key, value in out.items()} | {
        "buildable": card.buildable
    }


def _info(args: argparse.Namespace) -> dict[str, Any]:
    from vistok.registry import cards

    if args.what.endswith(".vtk"):
        return _token_file_info(args)
    out: dict[str, Any]
    if args.what in cards():
        out = _card_dict(cards()[args.what])
        if out["buildable"]:
            out |= _size(args.what)
    else:
        from vistok.config import to_dict
        from vistok.hub import from_pretrained

        model = from_pretrained(args.what)
        count = sum(tensor.numel() for tensor in model.state_dict().values())
        out = {"name": model.name, "family": model.family, "values": count, "weight_hash": model.weight_hash()}
        out["config"] = to_dict(model.config)
    width = max(map(len, out))
    _say(args, "\n".join(f"{key:<{width}}  {value}" for key, value in out.items() if value not in ("", {}, [])))
    return out


def _token_file_info(args: argparse.Namespace) -> dict[str, Any]:
    from vistok.report.table import text_table

    with _open_tokens(args, args.what) as file:
        layout, count = file.layout, len(file)
        lengths, sizes = file.lengths.tolist(), file.sizes.tolist()
        file[:1]  # a prior that does not fit is found out here
        out: dict[str, Any] = {
            "images": count,
            "format_version": file.version,
            "family": layout.family,
            "model": layout.model,
            "weight_hash": layout.weight_hash,
            "kind": layout.kind,
            "codebook_size": layout.codebook_size,
            "entropy": "" if layout.prior is None else layout.prior.describe(embed=False)["kind"],
            "tokens_per_image": [min(lengths, default=0), max(lengths, default=0)],
            "mean_tokens": sum(lengths) / max(1, count),
            "bytes_per_image": sum(sizes) / max(1, count),
            "index_bytes": file.index_bytes,
            "bytes": file.num_bytes,
            "first_images": [
                {
                    "index": row,
                    "name": file.names[row] if file.names else "",
                    "tokens": lengths[row],
                    "bytes": sizes[row],
                }
                for row in range(min(count, _LISTED))
            ],
        }
    facts = {key: value for key, value in out.items() if value not in ("", None) and key != "first_images"}
    width = max(map(len, facts))
    _say(args, "\n".join(f"{key:<{width}}  {value}" for key, value in facts.items()) + "\n")
    rows = [list(row.values()) for row in out["first_images"]]
    table = text_table(["index", "name", "tokens", "bytes"], rows)
    _say(args, table.encode("utf-8", "backslashreplace").decode())  # a file name may be no Unicode
    if count > _LISTED:
        _say(args, f"... and {count - _LISTED} more")
    return out


def _open_tokens(args: argparse.Namespace, path: str | Path) -> Any:
    from vistok.token_file import TokenFile

    return TokenFile.open(path, prior=_prior(args))


def _prior(args: argparse.Namespace) -> Any:
    from vistok.transcode import load_prior

    return None if args.prior is None else load_prior(args.prior)


def _size(name: str) -> dict[str, Any]:
    """Number of values and tokens of a registered model, without allocating it."""
    from vistok.config import from_dict
    from vistok.hub import empty_model
    from vistok.registry import get_card, model_class

    card = get_card(name)
    cls = model_class(card.family)
    model = empty_model(cls, from_dict(cls.config_class, card.config, where=name))
    out: dict[str, Any] = {"values": sum(tensor.numel() for tensor in model.state_dict().values())}
    for key in ("num_tokens", "codebook_size", "ordered", "adaptive", "continuous", "conditional"):
        if hasattr(model, key):
            out[key] = getattr(model, key)
    return out


def _convert(args: argparse.Namespace) -> dict[str, Any]:
    from vistok.hub import CHECKPOINT_SUFFIXES, from_pretrained, save_published

    model = from_pretrained(args.source)
    if args.to == "vistok":
        if args.target.suffix in CHECKPOINT_SUFFIXES or args.target.is_file():
            raise VistokError(
                f"the vistok layout is a folder, and {args.target} looks like a file; drop its suffix, or use --to published"
            )
        model.save_pretrained(args.target)
    else:
        save_published(model, args.target)
    _say(args, f"wrote {args.target} ({model.family}, weights {model.weight_hash()})")
    return {"target": str(args.target), "family": model.family, "layout": args.to, "weight_hash": model.weight_hash()}


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
        _say(
            args,
            f"{row['name']}: " + ", ".join(f"{length} tokens {value:.2f} dB" for length, value in row["psnr"].items()),
        )
    _say(args, f"wrote {args.out} ({args.crop} crop to {model.image_size} pixels)")
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
    _say(
        args,
        f"wrote {args.out}: {len(result['images'])} images, {result['tokens_per_image']:.4g} tokens and "
        f"{result['bytes_per_image']:.4g} bytes each, {result['bytes']} bytes in all",
    )
    for key, text in (
        ("unreadable", "could not be read"),
        ("not_reached", "do not reach the target and keep all tokens"),
    ):
        if result[key]:
            _say(args, f"{len(result[key])} {text}: {', '.join(result[key][:5])}")
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
            tokens: Any = TokenFile.recover(args.tokens, prior=_prior(args))
            if not tokens:
                raise VistokError(f"{args.tokens} holds no whole beginning of an image")
            made_by = tokens[0]
        else:
            tokens = stack.enter_context(_open_tokens(args, args.tokens))
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
    _say(args, f"wrote {len(written)} pictures to {args.out}")
    return {"out": str(args.out), "pictures": [str(path) for path in written]}


def _tokenize(args: argparse.Namespace) -> dict[str, Any]:
    from vistok.report.tokenize_command import run_tokenize

    return run_tokenize(args, device=_device(args.device), say=lambda text: _say(args, text), progress=not args.json)


def _train(args: argparse.Namespace) -> dict[str, Any]:
    from vistok.training import train

    result = train(args.config, args.overrides, resume=not args.no_resume, dry_run=args.dry_run)
    _say(args, f"step {result.step}; {'dry run: nothing was kept' if args.dry_run else result.folder}")
    return {"step": result.step, "folder": str(result.folder), "metrics": result.metrics}


def _eval_recon(args: argparse.Namespace) -> dict[str, Any]:
    from vistok.metrics.command import run_reconstruction

    return run_reconstruction(args, device=_device(args.device), say=lambda text: _say(args, text))


def _eval_curve(args: argparse.Namespace) -> dict[str, Any]:
    from vistok.report.curve_command import run_curve

    return run_curve(args, device=_device(args.device), say=lambda text: _say(args, text), progress=not args.json)


def _eval_gen(args: argparse.Namespace) -> dict[str, Any]:
    from vistok.metrics.generation_command import run_generation

    return run_generation(args, device=_device(args.device), say=lambda text: _say(args, text), progress=not args.json)


def _eval_reference(args: argparse.Namespace) -> dict[str, Any]:
    from vistok.metrics.reference_command import run_reference

    return run_reference(args, device=_device(args.device), say=lambda text: _say(args, text), progress=not args.json)


def _eval_protocols(args: argparse.Namespace) -> dict[str, Any]:
    from vistok.metrics.results_command import run_protocols

    return run_protocols(args, say=lambda text: _say(args, text))


def _eval_self_check(args: argparse.Namespace) -> dict[str, Any]:
    from vistok.metrics.results_command import run_check

    return run_check(args, say=lambda text: _say(args, text))


def _compare(args: argparse.Namespace) -> dict[str, Any]:
    from vistok.report.compare_command import run_compare

    return run_compare(args, say=lambda text: _say(args, text))


def _generate(args: argparse.Namespace) -> dict[str, Any]:
    from vistok.report.generate_command import run_generate

    return run_generate(args, device=_device(args.device), say=lambda text: _say(args, text), progress=not args.json)


def _search(args: argparse.Namespace) -> dict[str, Any]:
    from vistok.report.search_command import run_search

    return run_search(args, device=_device(args.device), say=lambda text: _say(args, text), progress=not args.json)


def _complexity(args: argparse.Namespace) -> dict[str, Any]:
    from vistok.report.complexity_command import run_complexity

    return run_complexity(args, device=_device(args.device), say=lambda text: _say(args, text), progress=not args.json)


def _serve(args: argparse.Namespace) -> dict[str, Any]:
    from vistok.serve.command import run_serve

    return run_serve(args, device=_device(args.device))


def _doctor(args: argparse.Namespace) -> dict[str, Any]:
    from vistok.doctor import examine

    report = examine()
    for line in report["lines"]:
        _say(args, line)
    return report


def _demo(args: argparse.Namespace) -> dict[str, Any]:
    from vistok.demo import run_demo, run_training_demo

    if args.train:
        if args.pictures:
            raise VistokError("demo --train is of the embedded emoji alone; leave your pictures out, or --train")
        return run_training_demo(args.out, quick=args.quick)
    return run_demo(args.out, pictures=args.pictures, quick=args.quick)


if __name__ == "__main__":
    raise SystemExit(main())
