"""The options of ``vistok search`` and ``eval/search.py``: winners and scaling curves of test-time search."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vistok.errors import VistokError

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from vistok.generate.base import Generator
    from vistok.search.method import SearchMethod
    from vistok.search.search_set import SearchModels
    from vistok.search.verifiers import Verifier


def add_search_arguments(parser: argparse.ArgumentParser, *, model_help: str = "") -> None:
    """Add the options; ``run_search`` reads them."""
    add = parser.add_argument
    model_help = model_help or "a registered name, a Hugging Face id, or a folder or file"
    add(
        "--model",
        action="append",
        required=True,
        metavar="[NAME=]MODEL",
        help=f"the generator, or uniform: {model_help}; may be given several times, to be compared",
    )
    add(
        "--tokenizer",
        action="append",
        default=[],
        metavar="TOKENIZER",
        help="decodes: one for all models, or one for each (default: the one that a generator names)",
    )
    add("--out", type=Path, required=True, help="folder of the results; a killed run goes on where it was")
    add("--method", action="append", metavar="METHOD", help="best_of_n, beam, lookahead or ar_free; several times")
    add(
        "--budgets",
        default="1,4,16",
        help="candidates scored an image, a search each (%(default)s); own: as --set says",
    )
    add(
        "--verifier",
        action="append",
        metavar="NAME",
        help="chooses the winners; several make an ensemble: likelihood (default) or likelihood_as_shipped; clip, aesthetic, image_reward, "
        "pickscore, hpsv2; lite0_class or lite0_minilm (small, offline); scene; similarity:lpips, similarity:lite0 or similarity: and a vision "
        "transformer of timm, with --reference",
    )
    add("--weights", help="of an ensemble's verifiers, as 1,0.5 (default: all alike)")
    add("--aggregation", default="rank", choices=("rank", "weighted"), help="of an ensemble (%(default)s)")
    add("--judge", metavar="NAME", help="a verifier that scores the winners and that no search has seen")
    add("--reference", type=Path, help="a picture, for verifiers as similarity:lpips or similarity:lite0")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--classes", help="numbers or names, as 0,5,207 (default: all classes, in turn)")
    what.add_argument("--prompt", action="append", help="a text; may be given several times")
    what.add_argument("--prompts", type=Path, metavar="FILE", help="a text a line")
    add("--num", type=int, help="images in all, balanced over the conditions (default: one for each)")
    add("--seed", type=int, default=0, help="of the set: image i depends on it and i alone (%(default)s)")
    add("--length", type=int, help="draw the first so many tokens only (ordered tokenizers)")
    add(
        "--fill",
        type=int,
        metavar="ID",
        help="the id in place of missing tokens, to preview tokenizers without an order",
    )
    for flag, what_for, example in (
        ("--set", "of the methods that have it, or of the sampling", "beam_width=3 or cfg_scale=2"),
        ("--preview", "of decoding candidates, where it is not --decode's", "steps=4"),
        ("--decode", "of decoding the winners", "steps=25"),
    ):
        add(flag, action="append", default=[], metavar="OPTION=VALUE", help=f"{what_for}, as {example}; several times")
    add("--batch-size", type=int, default=256, help="rows at a time (%(default)s)")
    add("--chunk-size", type=int, default=4, help="images that are searched for at once (%(default)s)")
    add("--grid", type=int, default=8, metavar="N", help="winners of the first N images as a picture (%(default)s)")
    add("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the generator (%(default)s)")
    add("--device", default="", help="cpu, cuda, cuda:1 ... (default: a GPU where there is one)")


def run_search(
    args: argparse.Namespace,
    *,
    device: torch.device | str,
    say: Callable[[str], None],
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Load, search, write and show.

    Args:
        args: of ``add_search_arguments``.
        device: where the models go.
        say: takes the table, on the main process.
        accelerator: shares the work between processes.
        progress: show a bar.
    Returns:
        the result, with ``files``.
    Raises:
        VistokError: whatever cannot be used.
    """
    from vistok.metrics.result import save_result
    from vistok.report.arguments import named_models, option_value
    from vistok.report.search import format_search, write_search
    from vistok.search.search_set import SearchCell, run_searches

    # Before models are loaded: a typing error should not take minutes.
    options = [option_value(text, flag="--set", example="beam_width=3") for text in args.set]
    methods, sampling = _methods(args.method or ["best_of_n"], dict(options))
    budgets = _budgets(args.budgets)
    given: dict[str, Any] = {"batch_size": args.batch_size, "length": args.length, "fill": args.fill}
    for flag, name in (("preview", "preview"), ("decode", "decode_options")):
        values = [option_value(text, flag=f"--{flag}", example="steps=4") for text in getattr(args, flag)]
        given[name] = dict(values) or None
    models: dict[str, SearchModels] = {}
    named = named_models(args.model)
    for index, (name, where) in enumerate(named):
        models[name] = _load(args, where, index, len(named), device, given | sampling)
    plan = _plan(args, {name: part.generator for name, part in models.items()})
    cells = [SearchCell(name, method, budget) for name in models for method in methods for budget in budgets]
    result = run_searches(
        models, cells, plan, args.out, chunk_size=args.chunk_size, accelerator=accelerator, progress=progress
    )
    files = {"result": str(args.out / "search.json"), "images": str(args.out / "images")}
    if accelerator is None or accelerator.is_main_process:
        save_result(result, args.out / "search.json")
        files |= write_search(result, args.out, pictures=args.grid)
    say(format_search(result))
    say(f"wrote {', '.join(files.values())}")
    return result | {"files": files}


def _methods(names: list[str], options: Mapping[str, Any]) -> tuple[list[SearchMethod], dict[str, Any]]:
    """Methods with those of the options that each has, and the options that none has: the sampling's."""
    from vistok.errors import nearest
    from vistok.search.run import METHODS

    for name in names:
        if name not in METHODS:
            raise VistokError(f"there is no search method {name!r}; {nearest(name, METHODS)}")
    fields = {name: {field.name for field in dataclasses.fields(METHODS[name])} for name in METHODS}
    known = set().union(*fields.values())
    made = [
        METHODS[name](**{option: _tuples(value) for option, value in options.items() if option in fields[name]})
        for name in dict.fromkeys(names)
    ]
    unused = [option for option in options if option in known and not any(option in fields[name] for name in names)]
    if unused:
        raise VistokError(f"{', '.join(names)} has no option {unused[0]!r}; leave it, or add the method that has it")
    return made, {option: value for option, value in options.items() if option not in known}


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _budgets(text: str) -> list[int | None]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part == "own" or (part.isdigit() and int(part) > 0) for part in parts):
        raise VistokError(f"--budgets are numbers of candidates, 1 or more, as 1,4,16; or own; got {text!r}")
    return [None if part == "own" else int(part) for part in parts]


def _load(
    args: argparse.Namespace, where: str, index: int, count: int, device: torch.device | str, options: dict[str, Any]
) -> SearchModels:
    import torch

    from vistok.generate.base import Generator
    from vistok.hub import from_pretrained, load_tokenizer
    from vistok.report.generate_command import named_tokenizer
    from vistok.search.search_set import SearchModels

    generator: Any = where
    if where != "uniform":
        generator = from_pretrained(where, device=device, dtype=getattr(torch, args.dtype))
        if not isinstance(generator, Generator):
            raise VistokError(f"{where} holds a {type(generator).__name__}, and a generator is wanted")
    if len(args.tokenizer) not in (0, 1, count):
        raise VistokError(f"give one --tokenizer, or one for each of {count} models; got {len(args.tokenizer)}")
    if not args.tokenizer and where == "uniform":
        raise VistokError("uniform draws from a tokenizer's codebook: give --tokenizer")
    chosen = args.tokenizer[index if len(args.tokenizer) > 1 else 0] if args.tokenizer else named_tokenizer(generator)
    tokenizer = load_tokenizer(chosen, device=device)
    if tokenizer.conditional:
        from vistok.models.text import ClipTextFeatures

        options = options | {"decode_condition": ClipTextFeatures().to(device)}
    real = generator if where != "uniform" else None
    return SearchModels(
        generator=generator,
        tokenizer=tokenizer,
        verifier=_verifier(args, real, tokenizer.image_size),
        options=options,
        judge=None if args.judge is None else _one_verifier(args.judge, args, real, tokenizer.image_size),
    )


def _verifier(args: argparse.Namespace, generator: Generator | None, size: int) -> Verifier:
    from vistok.search.verifiers import Ensemble

    names = args.verifier or ["likelihood"]
    made = [_one_verifier(name, args, generator, size) for name in names]
    if len(made) == 1:
        return made[0]
    try:
        weights = None if args.weights is None else [float(part) for part in args.weights.split(",")]
    except ValueError as error:
        raise VistokError(f"--weights are numbers, as 1,0.5; got {args.weights!r}") from error
    return Ensemble(made, weights, aggregation=args.aggregation)


def _one_verifier(name: str, args: argparse.Namespace, generator: Generator | None, size: int) -> Verifier:
    from vistok.search.verifiers import SimilarityVerifier, as_verifier

    kind, _, likeness = name.partition(":")
    if kind != "similarity":
        return as_verifier(name, generator)
    if args.reference is None or not likeness:
        raise VistokError(f"{name!r} compares with a picture: write similarity:lpips, and give --reference FILE")
    from vistok.data.images import read_image
    from vistok.data.transforms import crop_image, to_tensor

    return SimilarityVerifier(likeness, to_tensor(crop_image(read_image(args.reference), size)))


def _plan(args: argparse.Namespace, generators: Mapping[str, Any]) -> Any:
    """Conditions that all models take, and how many images."""
    from vistok.generate.base import Generator
    from vistok.generate.sample_set import SamplePlan
    from vistok.report.generate_command import read_conditions

    real = [part for part in generators.values() if isinstance(part, Generator)]
    conditions, labels = read_conditions(args, real[0] if real else None)
    return SamplePlan(num=args.num or len(conditions), conditions=conditions, seed=args.seed, labels=labels)
