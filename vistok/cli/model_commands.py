"""``vistok models``, ``info`` and ``convert``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vistok.cli.options import MODEL_HELP, add_prior, command, open_tokens, say
from vistok.errors import VistokError

_LISTED = 20  # images of a token file that `info` shows


def add_model_commands(commands: Any) -> None:
    """Add them to the subparsers."""
    sub = command(commands, "models", _models, "list registered models", "vistok models 'titok_*' --kind tokenizer")
    sub.add_argument("pattern", nargs="?", default="*", help="a glob over names (default: all)")
    sub.add_argument("--kind", choices=("tokenizer", "generator"), help="only this kind")
    sub.add_argument("--all", action="store_true", help="also published models that this version cannot build yet")
    sub.add_argument("--markdown", action="store_true", help="print the README's table of tokenizers")

    sub = command(
        commands, "info", _info, "what is known about a model or a .vtk file", "vistok info titok_s128.imagenet"
    )
    sub.add_argument("what", help=f"{MODEL_HELP}; or a .vtk token file")
    add_prior(sub)

    sub = command(
        commands,
        "convert",
        _convert,
        "convert a checkpoint between published layouts and vistok's",
        "vistok convert tokenizer_titok_l32.bin titok_l32/\n  vistok convert rar_b.bin rar_b/ --name rar_b.imagenet\n"
        "  vistok convert titok_l32/ titok_l32.safetensors --to published",
    )
    sub.add_argument("source", help=MODEL_HELP)
    sub.add_argument("target", type=Path, help="a folder (vistok layout) or a .safetensors file (published layout)")
    sub.add_argument(
        "--to", choices=("vistok", "published"), default="vistok", help="layout to write (default: vistok)"
    )
    sub.add_argument(
        "--name",
        help="the registered model that the source is: a file does not tell, and a generator's guidance goes by it",
    )


def _models(args: argparse.Namespace) -> list[dict[str, Any]]:
    from vistok.registry import get_card, list_models, markdown_table
    from vistok.report.table import text_table

    if args.markdown:
        say(args, markdown_table())
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
    say(args, text_table(["name", "family", "kind", "published", "licence", "hub id"], rows))
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
    say(args, "\n".join(f"{key:<{width}}  {value}" for key, value in out.items() if value not in ("", {}, [])))
    return out


def _token_file_info(args: argparse.Namespace) -> dict[str, Any]:
    from vistok.report.table import text_table

    with open_tokens(args, args.what) as file:
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
    say(args, "\n".join(f"{key:<{width}}  {value}" for key, value in facts.items()) + "\n")
    rows = [list(row.values()) for row in out["first_images"]]
    table = text_table(["index", "name", "tokens", "bytes"], rows)
    say(args, table.encode("utf-8", "backslashreplace").decode())  # a file name may be no Unicode
    if count > _LISTED:
        say(args, f"... and {count - _LISTED} more")
    return out


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
    from vistok.hub import CHECKPOINT_SUFFIXES, create_model, from_pretrained, save_published

    model = create_model(args.name, pretrained=args.source) if args.name else from_pretrained(args.source)
    if args.to == "vistok":
        if args.target.suffix in CHECKPOINT_SUFFIXES or args.target.is_file():
            raise VistokError(
                f"the vistok layout is a folder, and {args.target} looks like a file; drop its suffix, or use --to published"
            )
        model.save_pretrained(args.target)
    else:
        save_published(model, args.target)
    say(args, f"wrote {args.target} ({model.family}, weights {model.weight_hash()})")
    return {"target": str(args.target), "family": model.family, "layout": args.to, "weight_hash": model.weight_hash()}
