"""Measure a published model the way its paper did, and set the figure beside the one to expect: ``eval/reproduce.py NAME``."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vistok.errors import VistokError
from vistok.registry import ModelCard, get_card
from vistok.seeds import stable_seed

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

_NUM_SAMPLES = 50_000
_EXPECTED = {"rfid": "fid", "gfid": "fid", "fid_mjhq": "fid", "is": "is", "lpips": "lpips"}
_TOWERS = {"maskgen": "ViT-L-14-336:openai"}  # families that read texts by CLIP
_CLASS_REFERENCE, _TEXT_REFERENCE = "VIRTUAL_imagenet256_labeled.npz", "folder:mjhq30k"


def add_reproduce_arguments(parser: argparse.ArgumentParser) -> None:
    """The options; ``run_reproduce`` reads them."""
    add = parser.add_argument
    add("name", help="a registered model (vistok models)")
    add("--data", default="folder:imagenet/val", help="of tokenizers: the validation images (%(default)s)")
    add("--split", choices=("train", "val", "all"), help="of --data (default: val where some is held out; else all)")
    add(
        "--reference",
        help=f"of generators (default: {_CLASS_REFERENCE}, or {_TEXT_REFERENCE} of those that read texts)",
    )
    add(
        "--prompts",
        type=Path,
        default=Path("mjhq30k.txt"),
        metavar="FILE",
        help="of generators that read texts: a text a line; one image each (%(default)s)",
    )
    add("--protocol", help="another protocol than the paper's")
    add("--limit", type=int, help="so many images or samples only: a try, whose figure is not the paper's")
    add("--random-weights", action="store_true", help="do not load weights: shows that the whole of it runs")
    add(
        "--out",
        type=Path,
        default=Path("outputs/reproduce"),
        help="folder of samples, features and result (%(default)s)",
    )
    add("--batch-size", type=int, default=16, help="images at a time, in each process (%(default)s)")
    add("--workers", type=int, default=0, help="processes that read pictures (%(default)s)")
    add("--features", default="auto", choices=("auto", "inception", "lite0"), help="(%(default)s)")
    add("--weights", help="file with the weights of the features")
    add("--device", default="", help="cpu, cuda, cuda:1 ... (default: a GPU where there is one)")


def protocol_of(card: ModelCard) -> str:
    """The protocol that a card's figures are of."""
    if card.kind == "generator":
        return "adm-50k" if _reads_classes(card) else "torch-fidelity"
    return "imagenet256-val" if dict(card.preprocessing).get("crop") == "arc" else "titok"


def expected_figures(card: ModelCard) -> dict[str, float]:
    """Published figures, by the names that results have them under."""
    return {_EXPECTED[name]: value for name, value in card.metrics.items() if name in _EXPECTED}


def run_reproduce(
    args: argparse.Namespace,
    *,
    device: torch.device | str,
    say: Callable[[str], None],
    accelerator: Accelerator | None = None,
) -> dict[str, Any]:
    """Measure, write ``result.json`` and show.

    Raises:
        VistokError: whatever cannot be used.
    """
    from vistok.metrics.result import save_result

    card = get_card(args.name)
    folder = args.out / args.name
    measure = _generator if card.kind == "generator" else _tokenizer
    result = measure(card, args, folder, device, accelerator)
    result["model"] = args.name
    expected = expected_figures(card)
    partial = args.limit is not None or args.random_weights
    result["expected"] = expected
    result["reproduction"] = not partial
    if accelerator is None or accelerator.is_main_process:
        save_result(result, folder / "result.json")
        for name, value in expected.items():
            measured = f"{result[name]:.4g}" if result.get(name) is not None else "not measured"
            say(f"{name}: {measured}; published {value:g}")
        for name in dict.fromkeys(("psnr", "ssim", result.get("metric") or "fd_lite0", "fd_lite0", "clip_score")):
            if result.get(name) is not None and name not in expected:
                say(f"{name}: {result[name]:.4g}")
        if partial:
            say("note: --limit or --random-weights: a try of the whole chain, not the paper's figure")
        for note in [*result.get("deviations", ()), *result.get("notes", ())]:
            say(f"note: {note}")
        say(f"wrote {folder / 'result.json'}")
    return result


def _model(name: str, random: bool, device: torch.device | str) -> Any:
    """Published weights; or random ones, the same every time, which read texts by made-up features."""
    import torch

    from vistok.hub import create_model, from_pretrained

    if not random:
        return from_pretrained(name, device=device)
    tower = dict(get_card(name).config).get("text_tower", _TOWERS.get(get_card(name).family))
    changes = {} if tower is None else {"text_tower": str(tower).partition(":")[0]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model(name, **changes).eval().to(device)
    if getattr(model.config, "text", None) is not None:
        model.text_encoder = MadeUpStates(model.config.text.width, model.config.text.length, device=device)
    return model


def _tokenizer(
    card: ModelCard, args: argparse.Namespace, folder: Path, device: torch.device | str, accelerator: Accelerator | None
) -> dict[str, Any]:
    from vistok.metrics.command import open_evaluated
    from vistok.metrics.reconstruction import evaluate_reconstruction

    source, _ = open_evaluated(args.data, args.split)
    model = _model(args.name, args.random_weights, device)
    encoder = None
    if model.conditional:
        from vistok.models.text import ClipTextFeatures

        encoder = ClipTextFeatures(pretrained=not args.random_weights).to(device)
    return evaluate_reconstruction(
        model,
        source,
        protocol=args.protocol or protocol_of(card),
        batch_size=args.batch_size,
        limit=args.limit,
        features=args.features,
        weights=args.weights,
        num_workers=args.workers,
        text_encoder=encoder,
        cache=folder / "measured",
        accelerator=accelerator,
    )


def _generator(
    card: ModelCard, args: argparse.Namespace, folder: Path, device: torch.device | str, accelerator: Accelerator | None
) -> dict[str, Any]:
    from vistok.generate.sample_set import SamplePlan, read_prompts, write_samples
    from vistok.metrics.generation import evaluate_generation
    from vistok.metrics.protocols import get_protocol
    from vistok.metrics.samples import open_reference, open_samples

    if not card.tokenizer:
        raise VistokError(f"{card.name} does not say whose tokens it makes")
    # What is missing is said before models are loaded.
    prompts = None if _reads_classes(card) else tuple(read_prompts(args.prompts))
    reference = open_reference(args.reference or (_CLASS_REFERENCE if prompts is None else _TEXT_REFERENCE), None)
    generator = _model(args.name, args.random_weights, device)
    tokenizer = _model(card.tokenizer, args.random_weights, device)
    protocol = get_protocol(args.protocol or protocol_of(card))
    if prompts is None:
        labels = tuple(range(generator.num_classes))
        plan = SamplePlan(num=args.limit or _NUM_SAMPLES, conditions=labels, seed=0, labels=labels)
    else:
        plan = SamplePlan(num=min(args.limit or len(prompts), len(prompts)), conditions=prompts, seed=0)
        if args.random_weights:
            protocol = protocol.changed(f"{protocol.name}, a made-up CLIP", clip_model="tiny")
    decode_condition = None
    if tokenizer.conditional:
        from vistok.models.text import ClipTextFeatures

        decode_condition = ClipTextFeatures(pretrained=not args.random_weights).to(device)
    write_samples(
        generator,
        tokenizer,
        plan,
        folder / "samples",
        file_format="npz",
        batch_size=args.batch_size,
        chunk_size=max(args.batch_size, 64),
        decode_condition=decode_condition,
        accelerator=accelerator,
    )
    return evaluate_generation(
        open_samples(folder / "samples"),
        reference,
        protocol=protocol,
        batch_size=args.batch_size,
        features=args.features,
        weights=args.weights,
        cache=folder / "features",
        num_workers=args.workers,
        accelerator=accelerator,
        device=device,
    )


def _reads_classes(card: ModelCard) -> bool:
    """Whether a generator draws classes, as far as its card says."""
    return card.family not in _TOWERS and "text" not in card.config


class MadeUpStates:
    """States of captions that depend on the captions alone, and mean nothing: for tries without a text encoder.

    Args:
        width: of a state.
        length: the most words of a caption.
        device: where they are wanted.
    """

    def __init__(self, width: int, length: int, *, device: torch.device | str = "cpu") -> None:
        self.width, self.length, self.device = width, length, device

    def __call__(self, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """N captions -> states [N, n, width] and mask bool [N, n]."""
        import torch

        counts = [min(len(text.split()) + 1, self.length) for text in captions]
        states = torch.zeros(len(captions), max(counts), self.width)
        for row, (text, count) in enumerate(zip(captions, counts, strict=True)):
            own = torch.Generator().manual_seed(stable_seed("made-up text", text))
            states[row, :count] = torch.randn(count, self.width, generator=own)
        mask = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
        return states.to(self.device), mask.to(self.device)
