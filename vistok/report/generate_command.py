"""The options of ``vistok generate`` and ``eval/sample.py``: sets of images out of a generator."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vistok.errors import VistokError

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from vistok.generate.base import Generator
    from vistok.generate.sample_set import SamplePlan


def add_generate_arguments(parser: argparse.ArgumentParser, *, model_help: str = "") -> None:
    """Add the options; ``run_generate`` reads them."""
    add = parser.add_argument
    model_help = model_help or "a registered name, a Hugging Face id, or a folder or file"
    add("--model", required=True, help=f"the generator: {model_help}")
    add("--tokenizer", help="decodes its tokens (default: the one that the generator names)")
    add("--out", type=Path, required=True, help="folder of the images; a killed run goes on where it was")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--classes", help="numbers or names, as 0,5,207 (default: all classes, in turn)")
    what.add_argument("--prompt", action="append", help="a text; may be given several times")
    what.add_argument("--prompts", type=Path, metavar="FILE", help="a text a line")
    how_many = parser.add_mutually_exclusive_group()
    how_many.add_argument("--num", type=int, help="images in all, balanced over the conditions (default: 64)")
    how_many.add_argument("--per-condition", type=int, metavar="N", help="images for each class or prompt")
    add("--seed", type=int, default=0, help="of the set: image i depends on it and i alone (%(default)s)")
    add("--length", type=int, help="make and decode the first so many tokens only (ordered tokenizers)")
    add(
        "--set",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="a difference from the generator's sampling defaults, as temperature=0.9 or cfg_scale=2; several times",
    )
    add(
        "--format",
        default="png",
        choices=("png", "npz"),
        help="files, or one npz as ADM's evaluator takes it (%(default)s)",
    )
    add("--batch-size", type=int, default=64, help="images at a time, in each process (%(default)s)")
    add("--chunk-size", type=int, default=256, help="images that are shared out as one piece of work (%(default)s)")
    add("--grid", type=int, default=64, metavar="N", help="the first N also as grid.png (%(default)s; 0 for none)")
    add("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the generator (%(default)s)")
    add("--compile", action="store_true", help="compile the passes of one token; worth it for many images on a GPU")
    add("--device", default="", help="cpu, cuda, cuda:1 ... (default: a GPU where there is one)")


def run_generate(
    args: argparse.Namespace,
    *,
    device: torch.device | str,
    say: Callable[[str], None],
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Load, generate, write.

    Args:
        args: of ``add_generate_arguments``.
        device: where the models go.
        say: takes what was written, on the main process.
        accelerator: shares the work between processes.
        progress: show a bar.
    Returns:
        the set's settings, with ``files``.
    Raises:
        VistokError: whatever cannot be used.
    """
    import torch

    from vistok.generate.base import Generator
    from vistok.generate.sample_set import IMAGE_FOLDER, INDEX_FILE, NPZ_FILE, SETTINGS_FILE, write_samples
    from vistok.hub import from_pretrained, load_tokenizer
    from vistok.report.arguments import option_value

    sampling = dict(option_value(text, flag="--set", example="temperature=0.9") for text in args.set)
    generator = from_pretrained(args.model, device=device, dtype=getattr(torch, args.dtype))
    if not isinstance(generator, Generator):
        raise VistokError(f"{args.model} holds a {type(generator).__name__}, and a generator is wanted")
    if args.compile:
        _compile(generator)
    tokenizer = load_tokenizer(args.tokenizer or named_tokenizer(generator), device=device)
    plan = _plan(args, generator)
    decode_condition = None
    if tokenizer.conditional:
        from vistok.models.text import ClipTextFeatures

        decode_condition = ClipTextFeatures().to(device)
    settings = write_samples(
        generator,
        tokenizer,
        plan,
        args.out,
        file_format=args.format,
        length=args.length,
        batch_size=args.batch_size,
        chunk_size=args.chunk_size,
        decode_condition=decode_condition,
        accelerator=accelerator,
        progress=progress,
        **sampling,
    )
    files = {
        "images": str(args.out / (IMAGE_FOLDER if args.format == "png" else NPZ_FILE)),
        "index": str(args.out / INDEX_FILE),
        "settings": str(args.out / SETTINGS_FILE),
    }
    if args.grid > 0 and (accelerator is None or accelerator.is_main_process):
        files["grid"] = _write_grid(args.out, plan, args.grid, generator)
    say(f"{plan.num} images: {', '.join(files.values())}")
    return settings | {"files": files}


def _compile(generator: Generator) -> None:
    from vistok.generate.softmax import SoftmaxGenerator

    if not isinstance(generator, SoftmaxGenerator):
        raise VistokError(
            f"--compile: {generator.name or generator.family} is not made of passes of one token; leave it away"
        )
    generator.compile_steps()


def named_tokenizer(generator: Generator) -> str:
    """Name of the tokenizer whose tokens it makes."""
    card = generator.card
    name = (card.tokenizer if card is not None else "") or generator.config.tokenizer_model
    if not name:
        raise VistokError("this generator does not say whose tokens it makes: give --tokenizer")
    return name


def _plan(args: argparse.Namespace, generator: Generator) -> SamplePlan:
    from vistok.generate.sample_set import SamplePlan

    conditions, labels = read_conditions(args, generator)
    num = len(conditions) * args.per_condition if args.per_condition is not None else (args.num or 64)
    return SamplePlan(num=num, conditions=conditions, seed=args.seed, labels=labels)


def read_conditions(
    args: argparse.Namespace, generator: Generator | None
) -> tuple[tuple[Any, ...], tuple[int, ...] | None]:
    """The conditions that ``--classes``, ``--prompt`` or ``--prompts`` name, and their class numbers where they are classes.

    Args:
        args: with these three options.
        generator: by default, all of its classes are taken; None takes anything.
    Raises:
        VistokError: it has no such conditions.
    """
    from vistok.generate.base import class_labels

    prompts = _prompts(args)
    if prompts:
        return tuple(prompts), None
    entries = [_class(text) for text in args.classes.split(",")] if args.classes else []
    if generator is None:
        return tuple(entries) or (None,), None
    if generator.num_classes:
        found = class_labels(
            entries or list(range(generator.num_classes)),
            num_classes=generator.num_classes,
            class_names=getattr(generator.config, "class_names", ()),
            title=generator.name or generator.family,
        )
        labels = tuple(found.tolist())
        return labels, labels
    if entries:
        raise VistokError(f"{generator.name or generator.family} has no classes; leave --classes away")
    if generator.conditional:
        raise VistokError(f"{generator.name or generator.family} wants texts: give --prompt or --prompts")
    return (None,), None


def _prompts(args: argparse.Namespace) -> list[str]:
    if args.prompts is None:
        return list(args.prompt or [])
    from vistok.generate.sample_set import read_prompts

    return read_prompts(args.prompts)


def _class(text: str) -> int | str:
    return int(text) if text.strip().isdigit() else text.strip()


def _write_grid(folder: Path, plan: SamplePlan, count: int, generator: Generator) -> str:
    from vistok.generate.sample_set import first_images
    from vistok.report.grid import image_grid, save_image

    images = list(first_images(folder, min(count, plan.num)))
    columns = max(1, round(len(images) ** 0.5))
    names: Sequence[str] = getattr(generator.config, "class_names", ())
    rows, captions = [], []
    for start in range(0, len(images), columns):
        rows.append(images[start : start + columns])
        captions.append([_caption(plan, index, names) for index in range(start, start + len(rows[-1]))])
    path = folder / "grid.png"
    save_image(image_grid(rows, captions=captions if any(map(any, captions)) else ()), path)
    return str(path)


def _caption(plan: SamplePlan, index: int, names: Sequence[str]) -> str:
    label = plan.label(index)
    if label >= 0:
        return names[label] if label < len(names) else str(label)
    condition = plan.condition(index)
    return condition if isinstance(condition, str) else ""
