"""Does search gain more when tokens are ordered? One tokenizer recipe with and without an order, and what search makes of each.

    python eval/search_order.py --out outputs/search_order                   # half an hour on two CPU cores
    python eval/search_order.py --out outputs/quick --limit 2 --budgets 1,8 steps=4 schedule.warmup_steps=1 checkpoint_every=4

configs/titok/tiny.yaml (started from principal components in order; tails dropped in training) and configs/titok/tiny_unordered.yaml
(the same components mixed; no tails dropped), and configs/digit_ar/tiny.yaml on the tokens of each: equal sizes, steps, pictures, seeds.
The task: for each held-out smiley, draw under its category what looks most like it. The verifier is the likeness to it
(lite0, PSNR, or lpips where its weights are), and the judge, which no search sees, is PSNR, or lite0 where PSNR is the verifier. Beam search judges prefixes: of ordered tokens they
are coarse pictures; of tokens without an order, those to come are filled in with the middle of the codebook. All
runs, and searches that were finished, are kept in the folder: a killed run goes on.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vistok.config import embedded_config, load_config
from vistok.data import load_images, open_source
from vistok.errors import VistokError
from vistok.hub import from_pretrained
from vistok.metrics.pixel import psnr
from vistok.metrics.result import save_result
from vistok.models.base import Tokenizer
from vistok.report.grid import image_grid, save_image
from vistok.report.plot_picture import line_picture, side_by_side
from vistok.report.table import markdown_table
from vistok.search import search
from vistok.search.verifiers import SimilarityVerifier
from vistok.search.verifiers.similarity import Likeness
from vistok.training import TrainConfig, train

_DATA = "emoji:Smileys & Emotion"
_KINDS = {"ordered": "titok/tiny.yaml", "unordered": "titok/tiny_unordered.yaml"}
_METHODS = ("best_of_n", "beam")
_SHOWN = 6

Target = tuple[Tensor, str]  # a picture [3, H, W] and its category


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train what is not there yet, search, and write ``search_order.{json,md,png}`` and ``winners.png``."""
    out = Path(args.out)
    models = {kind: _models(kind, out, args.overrides) for kind in _KINDS}
    source = open_source(_DATA, split="val")
    count = len(source) if args.limit is None else min(args.limit, len(source))
    targets = load_images([source.image(index) for index in range(count)], like=models["ordered"][0])
    classes = [source.classes[source.label(index)] for index in range(count)]
    kept_file = out / "searches.json"
    kept = json.loads(kept_file.read_text(encoding="utf-8")) if kept_file.exists() else {}
    rows = []
    for kind, (tokenizer, generator) in models.items():
        ceiling = _measured(args.verifier, tokenizer.decode(tokenizer.encode(targets)).clamp(0, 1), targets)
        for method in _METHODS:
            for budget in args.budgets:
                key = f"{kind} {method} {budget} {args.verifier} {tokenizer.weight_hash()} {generator.weight_hash()}"
                found = kept.setdefault(key, [])
                for index in range(len(found), count):
                    found.append(
                        _one(
                            args.verifier, tokenizer, generator, (targets[index], classes[index]), index, method, budget
                        )
                    )
                    save_result(kept, kept_file)
                rows.append(
                    {"kind": kind, "method": method, "budget": budget, "ceiling": ceiling} | _mean(found[:count])
                )
                print(
                    f"{kind}, {method} of {budget}: {rows[-1]['score']:.4f}, {rows[-1]['judge']:.3f} (judge)",
                    flush=True,
                )
    result = {
        "verifier": args.verifier,
        "judge": _judge(args.verifier),
        "targets": count,
        "rows": rows,
        "gains": _gains(rows),
    }
    save_result(result, out / "search_order.json")
    (out / "search_order.md").write_text(_table(result), encoding="utf-8")
    save_image(_plot(result), out / "search_order.png")
    save_image(_winners(args, models, list(zip(targets, classes, strict=True))), out / "winners.png")
    print(_table(result))
    return result


def _models(kind: str, out: Path, overrides: list[str]) -> tuple[Tokenizer, Any]:
    runs = out / "runs"
    changes = [f"output_dir={runs}", *overrides]
    tokenizer = train(load_config(TrainConfig, embedded_config(_KINDS[kind]), changes)).folder / "final"
    changes += [f"name=generator_{kind}", f"loss.tokenizer={tokenizer}"]
    generator = train(load_config(TrainConfig, embedded_config("digit_ar/tiny.yaml"), changes)).folder / "final"
    return from_pretrained(tokenizer), from_pretrained(generator)


def _search(
    verifier: str, tokenizer: Tokenizer, generator: Any, target: Target, index: int, method: str, budget: int
) -> Any:
    middle, place = 0, 1
    for level in tokenizer.codebook_size:
        middle, place = middle + level // 2 * place, place * level
    return search(
        generator,
        tokenizer,
        target[1],
        method=method,
        budget=budget,
        verifier=_verifier(verifier, target[0]),
        seeds=1000 + index,
        fill=None if tokenizer.ordered else middle,
    )


def _one(
    verifier: str, tokenizer: Tokenizer, generator: Any, target: Target, index: int, method: str, budget: int
) -> dict[str, float]:
    found = _search(verifier, tokenizer, generator, target, index, method, budget)
    return {
        "score": float(found.scores[0]),
        "judge": float(_likeness(_judge(verifier))(found.images, target[0][None])[0]),
        "token_forwards": found.cost.token_forwards,
        "decoder_passes": found.cost.decoder_passes,
        "scored": found.cost.verifier_calls,
    }


def _measured(verifier: str, images: Tensor, targets: Tensor) -> dict[str, float]:
    """Of the tokenizer's own reconstruction: as good as any of its tokens is likely to get."""
    likeness, judge = _likeness(verifier), _likeness(_judge(verifier))
    return {"score": float(likeness(images, targets).mean()), "judge": float(judge(images, targets).mean())}


def _verifier(name: str, target: Tensor) -> SimilarityVerifier:
    return SimilarityVerifier(psnr if name == "psnr" else name, target)


@functools.cache
def _likeness(name: str) -> Likeness:
    return psnr if name == "psnr" else SimilarityVerifier(name).likeness


def _judge(verifier: str) -> str:
    return "lite0" if verifier == "psnr" else "psnr"


def _mean(found: list[dict[str, float]]) -> dict[str, Any]:
    values = {key: torch.tensor([row[key] for row in found], dtype=torch.float64) for key in found[0]}
    means: dict[str, Any] = {key: float(value.mean()) for key, value in values.items()}
    return means | {"scores": values["score"].tolist(), "judges": values["judge"].tolist()}


def _gains(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By method and budget: what search adds to one draw, ordered and not, and the difference target by target, with its error."""
    by = {(row["kind"], row["method"], row["budget"]): row for row in rows}
    first = min(row["budget"] for row in rows)
    gains = []
    for method, budget in dict.fromkeys((row["method"], row["budget"]) for row in rows):
        gain: dict[str, Any] = {"method": method, "budget": budget}
        for key, values in (("score", "scores"), ("judge", "judges")):
            added = {
                kind: torch.tensor(by[kind, method, budget][values])
                - torch.tensor(by[kind, "best_of_n", first][values])
                for kind in _KINDS
            }
            more = added["ordered"] - added["unordered"]
            error = float(more.std()) / math.sqrt(len(more)) if len(more) > 1 else 0.0
            gain[key] = {kind: float(value.mean()) for kind, value in added.items()}
            gain[key] |= {"difference": float(more.mean()), "standard_error": error}
        gains.append(gain)
    return gains


def _table(result: dict[str, Any]) -> str:
    by = {(gain["method"], gain["budget"]): gain for gain in result["gains"]}
    lines = []
    for row in result["rows"]:
        gain = by[row["method"], row["budget"]]
        more = ["", ""]
        if row["kind"] == "ordered":
            more = [f"{gain[key]['difference']:+.3f} ± {gain[key]['standard_error']:.3f}" for key in ("score", "judge")]
        cells = [row["kind"], row["method"], str(row["budget"]), f"{row['score']:.3f}", f"{row['judge']:.3f}"]
        lines.append([*cells, *more, f"{row['token_forwards']:.0f}"])
    head = [
        "tokens",
        "method",
        "budget",
        result["verifier"],
        f"{result['judge']} (judge)",
        "gains more",
        "gains more (judge)",
        "token forwards",
    ]
    return markdown_table(head, lines)


def _plot(result: dict[str, Any]) -> Any:
    pictures = []
    for key, label in (("score", f"{result['verifier']} (verifier)"), ("judge", f"{result['judge']} (judge)")):
        series = {}
        for row in result["rows"]:
            xs, ys = series.setdefault(f"{row['kind']}, {row['method'].replace('_', '-')}", ([], []))
            xs.append(row["budget"])
            ys.append(row[key])
        options = {"x_label": "candidates scored", "y_label": label, "log_x": True, "markers": True}
        pictures.append(line_picture(series, title=f"{label} of the winner", **options))
    return side_by_side(pictures)


def _winners(args: argparse.Namespace, models: dict[str, Any], targets: list[Target]) -> Any:
    """The first targets, what the tokenizers make of them, one draw, and what each search ends with."""
    shown = targets[:_SHOWN]
    pictures = torch.stack([picture for picture, _ in shown])
    rows, titles = [list(pictures)], ["target"]
    budget = max(args.budgets)
    for kind, (tokenizer, generator) in models.items():
        rows.append(list(tokenizer.decode(tokenizer.encode(pictures)).clamp(0, 1)))
        titles.append(f"{kind}: reconstructed")
        for method, size in (("best_of_n", 1), ("best_of_n", budget), ("beam", budget)):
            found = [
                _search(args.verifier, tokenizer, generator, target, i, method, size).images[0]
                for i, target in enumerate(shown)
            ]
            rows.append(found)
            titles.append(f"{kind}: " + ("one draw" if size == 1 else f"{method.replace('_', '-')}, {size}"))
    return image_grid(rows, row_titles=titles)


def main() -> int:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="changes to all configurations, as steps=100")
    parser.add_argument("--out", required=True, help="folder of runs and results")
    parser.add_argument(
        "--verifier",
        default="lite0",
        help="likeness: lite0, psnr, lpips, or a vision transformer of timm (%(default)s)",
    )
    parser.add_argument("--budgets", default="1,4,16,64", help="candidates scored (%(default)s)")
    parser.add_argument("--limit", type=int, help="this many targets (default: all held-out smileys)")
    args = parser.parse_intermixed_args()
    args.budgets = [int(text) for text in args.budgets.split(",")]
    try:
        run(args)
    except VistokError as error:
        print(f"search_order: error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
