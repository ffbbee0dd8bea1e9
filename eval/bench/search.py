"""Beam search and lookahead beside a straightforward implementation: speed at equal results, and where the time goes.

    python eval/bench/search.py --decoders "one pass"                                 # some minutes: random weights of the tiny recipes' sizes
    python eval/bench/search.py --decoders flow --methods beam --images 1 --repeats 1    # as long: nearly all of it is the flow decoder
    python eval/bench/search.py --images 8 --json f.json                              # everything

"plain" is what one writes first: every candidate is drawn from the condition on, which reads its prefix again, and is decoded
and scored by itself. "rows" is the same with the structure of the published framework: all rows of a step in one batch,
which share a pass over their prefixes, and one batch of candidates for the decoder; nothing is kept from step to step, and
images are searched for one after the other. Both take the most likely tokens, with guidance; all must find equal tokens, and
equal scores within 1e-5. "speed" is their time over ours, by processor time of one thread, alternating. The shares tell
where our own time goes: a decoder that takes most of it bounds what a shared prefix can win.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
import torch
from torch import Tensor

from vistok.generate import DigitAR, DigitARConfig
from vistok.hub import create_model
from vistok.models.base import Tokenizer
from vistok.models.flextok import FlexTok
from vistok.search import BeamConfig, LookaheadConfig, SearchResult, search
from vistok.search.prior import GeneratorPrior
from vistok.seeds import stable_seed
from vistok.tokens import Tokens

from alternate import alternate

_TOLERANCE = 1e-5
_GUIDANCE = 2.0
_STEPS = 4


def redness(images: Tensor, condition: Sequence[Any]) -> Tensor:
    """A verifier that costs nothing, so that the search is measured."""
    return images[:, 0].mean(dim=(1, 2)) - images[:, 1].mean(dim=(1, 2))


def straightforward(
    generator: Any, tokenizer: Tokenizer, label: int, config: BeamConfig, seed: int, *, batched: bool
) -> tuple[Tensor, float]:
    """The best row's ids and score; ``batched``: "rows", else "plain"."""
    prior = GeneratorPrior(generator, {"cfg_scale": _GUIDANCE, "temperature": 0.0})
    beams = torch.zeros(1, 0, dtype=torch.int64)
    ids, scores = beams, torch.zeros(1)
    for step, length in enumerate(config.lengths(generator.num_tokens)):
        branches = config.candidates_per_beam
        if batched:
            ids = _branched(prior, beams, label, length, branches)
        else:
            rows = [(row, branch) for row in beams for branch in range(branches)]
            ids = torch.cat(
                [_branched(prior, row[None], label, length, branches)[branch, None] for row, branch in rows]
            )
        wanted = config.scored_length(step, length, _Length(generator.num_tokens))
        parts = ids.split(len(ids) if batched else 1)
        seen = ids if wanted == length else torch.cat([_greedy(prior, part, label, wanted) for part in parts])
        found = [_score(tokenizer, prior.tokens(part), seed) for part in seen.split(len(seen) if batched else 1)]
        scores = torch.cat(found)
        order = scores.sort(descending=True, stable=True).indices
        beams, scores, seen = ids[order[: config.beam_width]], scores[order], seen[order]
    return seen[0], float(scores[0])


class _Length:
    """What ``scored_length`` reads of a context."""

    def __init__(self, length: int) -> None:
        self.length = length


def _branched(prior: GeneratorPrior, beams: Tensor, label: int, length: int, branches: int) -> Tensor:
    rollout = prior.generator.start([label] * len(beams), sampling=prior.sampling, prefix=_prefix(prior, beams))
    rollout.extend(length - beams.shape[1] - 1, _no_noise(prior, len(beams)))
    rollout.fan_out(branches, torch.zeros(len(beams), branches, prior.generator.draws_per_token))
    return rollout.ids


def _greedy(prior: GeneratorPrior, rows: Tensor, label: int, length: int) -> Tensor:
    rollout = prior.generator.start([label] * len(rows), sampling=prior.sampling, prefix=_prefix(prior, rows))
    rollout.extend(length - rows.shape[1], _no_noise(prior, len(rows)))
    return rollout.ids


def _prefix(prior: GeneratorPrior, rows: Tensor) -> Tokens | None:
    return prior.tokens(rows) if rows.shape[1] else None


def _no_noise(prior: GeneratorPrior, rows: int) -> Tensor:
    return torch.zeros(rows, prior.num_tokens, prior.generator.draws_per_token)


def _score(tokenizer: Tokenizer, tokens: Tokens, seed: int) -> Tensor:
    noise = tokenizer.decode_noise([stable_seed(seed, "decode")] * len(tokens))
    return redness(tokenizer.decode(tokens, **noise, **_options(tokenizer)), [])


def _options(tokenizer: Tokenizer) -> dict[str, int]:
    """Few steps of a flow, the same on all sides."""
    return {"steps": _STEPS} if isinstance(tokenizer, FlexTok) else {}


def make_models(kind: str) -> tuple[Any, Tokenizer]:
    """A tokenizer and a generator of its tokens, with random weights everywhere."""
    tokenizer = create_model({"one pass": "onedpiece_tiny_64.photos", "flow": "flextok_tiny_64.photos"}[kind])
    draw = torch.Generator().manual_seed(0)
    size, shape = tokenizer.codebook_size, {"num_tokens": tokenizer.num_tokens, "num_classes": 10, "width": 128}
    generator = DigitAR(DigitARConfig(codebook_size=size, depth=4, num_heads=4, head="softmax", **shape))
    for model in (tokenizer, generator):
        for parameter in model.parameters():
            scale = 1.0 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
            parameter.data.normal_(generator=draw).mul_(scale if parameter.ndim > 1 else 0.1)
    return generator.eval(), tokenizer.eval()


def measure(kind: str, config: BeamConfig, images: int, repeats: int) -> dict[str, Any]:
    """Both ratios, the shares of our time, and the largest difference of scores."""
    generator, tokenizer = make_models(kind)
    labels, seeds = [index % 10 for index in range(images)], list(range(images))

    def ours() -> SearchResult:
        return search(
            generator,
            tokenizer,
            labels,
            method=config,
            verifier=redness,
            seeds=seeds,
            decode_options=_options(tokenizer),
            cfg_scale=_GUIDANCE,
        )

    def theirs(batched: bool) -> Callable[[], list[tuple[Tensor, float]]]:
        return lambda: [
            straightforward(generator, tokenizer, label, config, seed, batched=batched)
            for label, seed in zip(labels, seeds, strict=True)
        ]

    result = ours()
    for batched in (False, True):
        for row, (ids, score) in enumerate(theirs(batched)()):
            if not torch.equal(ids, result.tokens.ids[row, : len(ids)]):
                raise SystemExit(f"{kind}: image {row} differs from the straightforward search")
            if abs(score - float(result.scores[row])) > _TOLERANCE:
                raise SystemExit(f"{kind}: the score of image {row} is off by {score - float(result.scores[row])}")
    plain, _ = alternate(ours, theirs(False), repeats)
    rows, _ = alternate(ours, theirs(True), repeats)
    spent = {"generator": 0.0, "decoder": 0.0}
    with _Timed(type(generator), "read_tokens", "draw_branches", "draw_tokens", spent=spent, name="generator"):
        with _Timed(type(tokenizer), "decode", spent=spent, name="decoder"):
            start = time.process_time()
            ours()
            seconds = time.process_time() - start
    cost = {"token_forwards": result.cost.token_forwards, "decoder_passes": result.cost.decoder_passes}
    shares = {f"{name}_share": value / seconds for name, value in spent.items()}
    return {"decoder": kind, "method": config.name, "plain": plain, "rows": rows, **shares, **cost}


class _Timed:
    """Methods of a class add their processor time to ``spent[name]`` inside."""

    def __init__(self, owner: type, *methods: str, spent: dict[str, float], name: str) -> None:
        self.owner, self.methods, self.spent, self.name = owner, methods, spent, name

    def __enter__(self) -> None:
        self.before = {method: self.owner.__dict__.get(method) for method in self.methods}
        for method in self.methods:
            setattr(self.owner, method, self._wrapped(getattr(self.owner, method)))

    def _wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.spent[self.name] += time.process_time() - start

        return timed

    def __exit__(self, *_: object) -> None:
        for method, function in self.before.items():
            if function is None:
                delattr(self.owner, method)
            else:
                setattr(self.owner, method, function)


def main() -> int:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2, help="conditions that are searched for (default: 2)")
    parser.add_argument("--width", type=int, default=3, help="rows of a beam (default: 3)")
    parser.add_argument("--candidates", type=int, default=8, help="branches of a row (default: 8)")
    parser.add_argument("--decoders", nargs="+", default=["one pass", "flow"], choices=["one pass", "flow"])
    parser.add_argument("--methods", nargs="+", default=["beam", "lookahead"], choices=["beam", "lookahead"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    shape = {"beam_width": args.width, "candidates_per_beam": args.candidates, "sample": False}
    configs = [BeamConfig(**shape, max_steps=7), LookaheadConfig(**shape, max_steps=5, lookahead_number=8)]
    rows = []
    print(f"{'decoder':<10}{'method':<11}{'plain':>7}{'rows':>7}{'generator':>11}{'decoder':>9}", flush=True)
    for kind in args.decoders:
        for config in (config for config in configs if config.name in args.methods):
            row = measure(kind, config, args.images, args.repeats)
            rows.append(row)
            print(
                f"{kind:<10}{row['method']:<11}{row['plain']:>7.2f}{row['rows']:>7.2f}"
                f"{row['generator_share']:>11.0%}{row['decoder_share']:>9.0%}",
                flush=True,
            )
    if args.json:
        settings = {name: getattr(args, name) for name in ("images", "width", "candidates", "repeats")}
        args.json.write_text(json.dumps(settings | {"torch": torch.__version__, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
