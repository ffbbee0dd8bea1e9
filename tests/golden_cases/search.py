"""Golden cases of test-time search: our methods on the recorded toy prior and toy verifier, call for call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from vistok.search.beam import BeamConfig
from vistok.search.best_of_n import BestOfNConfig
from vistok.search.context import SearchContext
from vistok.search.lookahead import LookaheadConfig
from vistok.search.method import Found, SearchMethod
from vistok.search.prior import Rows
from vistok.search.verifiers import Ensemble, LikelihoodVerifier, Verifier
from vistok.tokens import Tokens

from golden_cases import GoldenCase, Result

# What the official classes take where nothing is said.
_BEAM_DEFAULTS = {"sample": False, "repeat_entries": True, "sort_completed": False}


def run(case: GoldenCase) -> Iterator[Result]:
    """All outputs of a case."""
    for step in case.steps:
        if step["op"] == "search":
            prefix = f"out/{step['outputs_prefix']}"
            step["outputs"] = [
                {"name": name.removeprefix("out/"), "tensor": name}
                for name in sorted(case._io)
                if name.startswith(prefix)
            ]
        else:
            step["outputs"] = [{"name": name, "tensor": f"out/{name}"} for name in step["outputs"]]
    for step in case.steps:
        if step["op"] == "search":
            yield from _run_search(case, step)
        elif step["op"] == "ensemble":
            yield from _run_ensemble(case, step)
        elif step["op"] == "likelihood":
            yield _run_likelihood(case, step)


class ToyRows(Rows):
    """The recorded prior: a table of next-token log-probabilities with recorded Gumbel noise, or recorded draws."""

    def __init__(self, case: GoldenCase, ids: Tensor, calls: list[dict[str, Any]]) -> None:
        self._case, self._ids, self.calls = case, ids, calls
        self._log_probs = torch.zeros(ids.shape, dtype=torch.float64)
        self._counter = 0
        self._uniform = "in/draws" in case._io

    @property
    def ids(self) -> Tensor:
        return self._ids

    @property
    def log_probs(self) -> Tensor | None:
        return None if self._uniform else self._log_probs

    def draw(
        self,
        num_new: int,
        branches: int = 1,
        *,
        sample: bool = True,
        replacement: bool = False,
        whole_step: bool = False,
    ) -> None:
        before = self._ids
        if self._uniform:
            draws = self._case.tensor("in/draws")[self._counter, : len(before) * branches, :num_new].long()
            self._ids = torch.cat([before.repeat_interleave(branches, 0), draws], dim=1)
            self._counter += 1
        else:
            self._draw(num_new, branches, sample)
            self._counter += sample
        call = {"in": before, "out": self._ids, "num_new": num_new, "num_samples": branches}
        if not self._uniform:
            call["logprob"] = self._log_probs[:, before.shape[1] :].sum(dim=1)
        self.calls.append(call | {"sample": sample, "rows": len(before)})

    def _draw(self, num_new: int, branches: int, sample: bool) -> None:
        table = self._case.tensor("in/table")
        gumbel = self._case.tensor("in/gumbel")
        if num_new == 0:
            self._ids, self._log_probs = (
                values.repeat_interleave(branches, 0) for values in (self._ids, self._log_probs)
            )
        for turn in range(num_new):
            rows, position = len(self._ids), self._ids.shape[1]
            first = self._ids[:, -1] if position else torch.full((rows,), table.shape[2])
            log_probs = table[position, first]
            keys = log_probs + gumbel[self._counter, :rows, turn] if sample else log_probs
            count = branches if turn == num_new - 1 else 1
            picked = keys.sort(dim=1, descending=True, stable=True).indices[:, :count]
            found = log_probs.gather(1, picked).flatten()
            self._ids = torch.cat([self._ids.repeat_interleave(count, 0), picked.flatten()[:, None]], dim=1)
            self._log_probs = torch.cat([self._log_probs.repeat_interleave(count, 0), found[:, None]], dim=1)

    def select(self, index: Tensor) -> None:
        self._ids = self._ids[index]
        if not self._uniform:
            self._log_probs = self._log_probs[index]

    def copy(self) -> ToyRows:
        other = object.__new__(ToyRows)
        other.__dict__.update(self.__dict__)
        return other


class ToyContext(SearchContext):
    """A context whose rows and scores are the recorded ones'; it writes down all calls."""

    def prepare(self, case: GoldenCase) -> None:
        self.case = case
        self.calls: list[dict[str, Any]] = []
        self.batches: list[tuple[Tensor, Tensor]] = []
        self._counter = 0

    def start(self) -> Rows:
        ids = torch.zeros(1, 0, dtype=torch.int64) if self.prefix is None else self.prefix
        return ToyRows(self.case, ids, self.calls)

    def generate(
        self, owners: Sequence[int], num: int, seeds: Sequence[int], *, sample: bool = True
    ) -> tuple[Tokens, Tensor | None]:
        rows = ToyRows(self.case, torch.zeros(len(seeds), 0, dtype=torch.int64), self.calls)
        rows._counter = self._counter
        rows.draw(self.length, sample=sample)
        self._counter = rows._counter
        return self.prior.tokens(rows.ids), rows.log_probs

    def measure(self, owners: Sequence[int], ids: Tensor, log_probs: Tensor | None, **facts: Any) -> Tensor:
        value = self.case.tensor
        hidden = torch.einsum("t,ntd->nd", value("in/v_a")[: ids.shape[1]], value("in/v_E")[ids])
        scores = hidden @ value("in/v_w") + 0.5 * torch.tanh(hidden @ value("in/v_u"))
        self.batches.append((ids, scores))
        return scores[:, None]


class ToyPrior:
    """Where the context makes ``Tokens``; nothing is drawn from it."""

    def tokens(self, ids: Tensor) -> Tokens:
        return Tokens(ids=ids)


class ToyVerifier(Verifier):
    """A verifier that wants images; the scores are the context's."""

    name = "toy"

    def __call__(self, images: Tensor | None, condition: list[Any], **facts: Any) -> Tensor:
        raise AssertionError("the context scores")


def _method(step: dict[str, Any]) -> tuple[SearchMethod, int]:
    """Our configuration of a recorded search, and its batch size."""
    config = dict(step["search_config"])
    config.pop("decode_batch_size", None)  # the toy decoder is the same in any batches
    if step["algorithm"] == "best_of_n":
        size = config.pop("batch_size", None) or config.get("n_samples", 50)
        return BestOfNConfig(**config, own_noise=True), size
    kind = {"beam": BeamConfig, "lookahead": LookaheadConfig}[step["algorithm"]]
    return kind(**(_BEAM_DEFAULTS | config)), 10**6


def _run_search(case: GoldenCase, step: dict[str, Any]) -> Iterator[Result]:
    method, batch_size = _method(step)
    initial = step.get("initial_tokens")
    context = ToyContext(
        prior=ToyPrior(),
        tokenizer=None,
        verifier=ToyVerifier(),
        conditions=[None],
        seeds=[0],
        length=case.config["max_tokens"],
        num_results=step["num_results"],
        batch_size=batch_size,
        prefix=None if initial is None else torch.tensor(initial),
    )
    context.prepare(case)
    found = method.search(context)
    ours = _named_outputs(step, context, found)
    wanted = [(call["num_new"], call["num_samples"], call["sample"], call["rows"]) for call in step["calls"]]
    made = [(call["num_new"], call["num_samples"], call["sample"], call["rows"]) for call in context.calls]
    if step["algorithm"] != "best_of_n":
        prefix = 0 if initial is None else len(initial[0])
        schedule = list(method.lengths(context.length, prefix))
        if schedule != step["step_schedule"]:
            made.append(("schedule", *schedule))
    for output in step["outputs"]:
        name = output["name"].removeprefix(step["outputs_prefix"])
        if name not in ours or made != wanted:
            note = f"calls {made}, recorded {wanted}" if made != wanted else "was not computed"
            yield Result(output["name"], None, None, False, note)
            continue
        yield case.compare(step, output["name"], ours[name])


def _named_outputs(step: dict[str, Any], context: ToyContext, found: Found) -> dict[str, Tensor]:
    """Our values by the recorded names."""
    out: dict[str, Tensor] = {}
    for index, call in enumerate(context.calls):
        out |= {f"call{index}_{name}": call[name] for name in ("in", "out", "logprob") if name in call}
    for index, (ids, scores) in enumerate(context.batches):
        out |= {f"score{index}_tokens": ids, f"score{index}": scores}
    shown = found.ids[0]
    out["final_scores"] = found.scores[0]
    out["images_tokens"] = found.ids[0] if found.shown is None else found.shown[0]
    if step["algorithm"] == "best_of_n":
        return out | {"final_tokens": shown}
    for index, round_ in enumerate(found.history):
        out[f"step{index}_beams"] = round_.tokens.ids[round_.kept[0]]
        out[f"step{index}_best_score"] = round_.scores[0].max()[None]
    completed = found.ids.shape[2] > found.history[-1].tokens.num_tokens
    last = out[f"step{len(found.history) - 1}_beams"]
    return out | {"display_tokens": shown, "final_tokens": shown if completed else last}


def _run_ensemble(case: GoldenCase, step: dict[str, Any]) -> Iterator[Result]:
    scores = case.tensor(f"in/{step['inputs'][0]}")
    for output in step["outputs"]:
        members = {str(row): ToyVerifier() for row in range(len(scores))}
        shipped = not output["name"].endswith("_intended")
        ensemble = Ensemble(members, step["weights"], aggregation=step["aggregation"], as_shipped=shipped)
        used = [row for row, weight in zip(scores, step["weights"], strict=True) if weight > 0]
        yield case.compare(step, output["name"], ensemble.combine(torch.stack(used, dim=1)))


def _run_likelihood(case: GoldenCase, step: dict[str, Any]) -> Result:
    name, count = step["outputs"][0]["name"], step.get("num_tokens")
    verifier = LikelihoodVerifier(as_shipped=True)
    if not step["inputs"]:  # no log-probabilities at all
        rows = case.tensor(f"out/{name}").numel()
        return case.compare(step, name, verifier(None, [None] * rows))
    log_probs = case.tensor(f"in/{step['inputs'][0]}")
    log_probs = log_probs.reshape(len(log_probs), -1)
    if count is None:  # best-of-N
        return case.compare(step, name, verifier(None, [None] * len(log_probs), log_probs=log_probs))
    # The recording has the new tokens' sum; the tokens before them do not count.
    earlier = torch.zeros(len(log_probs), count - 1)
    summed = log_probs.sum(dim=1, keepdim=True)
    ours = verifier(None, [None] * len(log_probs), log_probs=torch.cat([earlier, summed], dim=1), num_new=1)
    return case.compare(step, name, ours)
