"""The weights that come with vistok: from a run's folder to ``assets/weights/NAME``, at half precision, with their card."""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vistok.config import to_dict
from vistok.data import load_images, open_source
from vistok.errors import VistokError
from vistok.generate.base import Generator
from vistok.hub import from_pretrained
from vistok.metrics.pixel import psnr
from vistok.models.base import PretrainedModel, Tokenizer
from vistok.registry import get_card

_LARGEST = 15 * 2**20
_LENGTHS = (1, 4, 16, 64, 128, 256)
_ERRORS = (0.05, 0.1, 0.2)
_SETS = ("photos:", "emoji:")
_CARD = """\
---
library_name: vistok
license: apache-2.0
---

# {name}

{what}

```python
import vistok

model = vistok.create_model("{name}", pretrained=True)
```

- **Data**: the training part of the pictures that come with vistok (Noto emoji, Apache-2.0; photographs, public domain or
  CC0). The held-out part was never trained on.
- **Recipe**: {recipe}; the log of it is `training.jsonl`.
- **Weights**: {values:,} values at half precision; hash `{weight_hash}` once loaded.
- **Licence**: Apache-2.0.

{measured}
"""


def package(run: str | Path, name: str, out: str | Path, *, tokenizer: str | None = None) -> Path:
    """Write a trained model into ``out/name``.

    Args:
        run: folder of the run, with ``final`` in it.
        name: the registered name that it shall have.
        out: as a rule ``assets/weights``.
        tokenizer: for a generator, the tokenizer whose tokens it writes, where that is no longer the one it was trained with;
            both must make the same tokens, up to rounding.
    Returns:
        the folder.
    Raises:
        VistokError: it is another model than ``name`` says, too large, or the tokenizers differ.
    """
    run, folder = Path(run), Path(out) / name
    model = from_pretrained(run / "final")
    card = get_card(name)
    if model.family != card.family:
        raise VistokError(f"{run} holds a {model.family}, and {name} is a {card.family}")
    model.name = name
    notes = []
    if isinstance(model, Generator):  # its card says how it is best drawn from, which was found after the training
        model.config = replace(model.config, sampling=model.config.sampling.updated(**card.sampling))
        notes.append(_follow(model, run, tokenizer))
    model.half().save_pretrained(folder)
    size = (folder / "model.safetensors").stat().st_size
    if size > _LARGEST:
        raise VistokError(f"{name} takes {size / 2**20:.1f} MiB, more than the {_LARGEST / 2**20:.0f} it may")
    shutil.copyfile(run / "metrics.jsonl", folder / "training.jsonl")
    loaded = from_pretrained(folder, dtype=torch.float32)
    notes.append(_tokenizer_figures(loaded) if isinstance(loaded, Tokenizer) else _generator_figures(run))
    config = json.loads(json.dumps(_run_config(run)))
    text = _CARD.format(
        name=name,
        what=card.notes[:1].upper() + card.notes[1:] + ".",
        recipe=_recipe(config),
        values=sum(tensor.numel() for tensor in loaded.state_dict().values()),
        weight_hash=loaded.weight_hash(),
        measured="\n\n".join(note for note in notes if note),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    return folder


def _run_config(run: Path) -> dict[str, Any]:
    from vistok.config import load_config
    from vistok.training.config import TrainConfig

    return to_dict(load_config(TrainConfig, run / "config.yaml"))


def _recipe(config: dict[str, Any]) -> str:
    """How the run was started, in words."""
    text = "`vistok train configs/vistok/{}.yaml`".format(config["name"].removeprefix("vistok_"))
    if config["init_from"]:
        first = Path(config["init_from"]).parent.name.removeprefix("vistok_")
        text = f"`vistok train configs/vistok/{first}.yaml`, then {text}"
    return f"{text}: {config['steps']:,} steps of {config['batch_size']} pictures, seed {config['seed']}"


def _follow(model: PretrainedModel, run: Path, name: str | None) -> str:
    """Tie a generator to another tokenizer that makes the same tokens."""
    if name is None:
        return ""
    old, new = from_pretrained(_run_config(run)["loss"]["tokenizer"]), from_pretrained(name)
    source = open_source("emoji:", split="val")
    images = load_images([source.image(index) for index in range(len(source))], like=new)
    first, second = (each.encode(images).ids[:, : model.num_tokens] for each in (old, new))
    same = float((first == second).float().mean())
    if same < 0.95:
        raise VistokError(f"{name} makes other tokens than the run's tokenizer: {same:.1%} are the same")
    model.config = replace(model.config, tokenizer_model=name, tokenizer_hash=new.weight_hash())
    return f"It writes tokens of `{name}`."


def _tokenizer_figures(model: Tokenizer) -> str:
    """PSNR of the held-out pictures, by tokens or by wanted error."""
    lines = []
    for spec in _SETS:
        source = open_source(spec, split="val")
        images = load_images([source.image(index) for index in range(len(source))], like=model)
        if model.adaptive:
            for error in _ERRORS:
                tokens = model.encode(images, target_error=error)
                count, value = float(tokens.lengths.float().mean()), float(psnr(model.decode(tokens), images).mean())
                lines.append(f"| {spec} | {error:g} | {count:.1f} | {value:.2f} |")
            continue
        tokens = model.encode(images)
        for length in (length for length in _LENGTHS if length <= model.num_tokens):
            value = float(psnr(model.decode(tokens.truncate(length)), images).mean())
            lines.append(f"| {spec} | {length} | {value:.2f} |")
    head = "| held-out | wanted error | tokens | PSNR, dB |\n|---|---|---|---|" if model.adaptive else ""
    return "\n".join([head or "| held-out | tokens | PSNR, dB |\n|---|---|---|", *lines])


def _generator_figures(run: Path) -> str:
    """The last logged negative log-likelihoods."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    parts = []
    for key, what in (("train/nll_per_token", "training"), ("eval/nll_per_token", "held-out")):
        values = [line[key] for line in lines if key in line]
        if values:
            parts.append(f"{values[-1]:.2f} nats a token on {what} pictures")
    return "It reaches " + ", ".join(parts) + "." if parts else ""


def main(doc: str) -> int:
    """Read the command line of ``train/package.py``."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("name", help="registered name, as vistok_ordered")
    parser.add_argument("--out", default="assets/weights", help="where the models that come with vistok are")
    parser.add_argument("--tokenizer", help="for a generator: the tokenizer whose tokens it writes")
    args = parser.parse_args()
    print(package(args.run, args.name, args.out, tokenizer=args.tokenizer))
    return 0
