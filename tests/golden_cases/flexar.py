"""Golden cases of FlexAR: logits, greedy generation with and without guidance, branching, sampling filters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.convert import recognise
from vistok.generate.autoregressive import Rollout
from vistok.generate.flexar import FlexAR
from vistok.generate.sampling import SamplingConfig, filter_logits
from vistok.generate.text import TextCondition
from vistok.hub import empty_model

from golden_cases import GoldenCase, Result


@torch.no_grad()
def run(case: GoldenCase) -> Iterator[Result]:
    """All outputs of a case."""
    state = case.state()
    source = recognise(case.shapes)
    config = source.read_config(case.shapes, case.config)
    key_map = source.key_map(config)
    model = empty_model(FlexAR, config)
    model.load_weights(key_map.to_ours(state), where=case.name)
    back = key_map.to_published(model.state_dict())
    if back.keys() != state.keys() or not all(torch.equal(back[key], state[key]) for key in state):
        raise AssertionError("official -> ours -> official changed names or values")
    if source.read_config(case.shapes, source.wrap_config(config)) != config:
        raise AssertionError("the configuration did not survive")
    model.eval()
    for step in case.steps:
        computed = _STEPS[step["op"]](case, model, step) if step["op"] in _STEPS else {}
        for name in step["outputs"]:
            if name in computed:
                yield _compare(case, step, name, computed[name])


def _compare(case: GoldenCase, step: dict[str, Any], name: str, ours: Tensor) -> Result:
    theirs = case.tensor(f"out/{name}")
    ours = ours.reshape(theirs.shape) if ours.numel() == theirs.numel() else ours
    described = {"outputs": [{"name": name, "tensor": f"out/{name}"}]}
    return case.compare(described, name, ours.to(theirs.dtype) if not theirs.is_floating_point() else ours)


def _condition(case: GoldenCase, model: FlexAR) -> Any:
    """Classes; or captions with the empty one, which the recording has as its last row."""
    if model.config.text is None:
        return model.encode_condition(case.tensor("in/classes").long())
    hidden, mask = case.tensor("in/text_hidden"), case.tensor("in/text_mask").bool()
    return model.encode_condition(TextCondition(hidden[:-1], mask[:-1], hidden[-1:], mask[-1:]))


def _logits(case: GoldenCase, model: FlexAR, step: dict[str, Any]) -> dict[str, Tensor]:
    ids, condition = case.tensor("in/tokens").long(), _condition(case, model)
    logits = model.logits(model.states(ids, condition))
    out = {"logits": logits, "ce": F.cross_entropy(logits.flatten(0, 1), ids.flatten())}
    torch.testing.assert_close(model(ids, condition)["loss"], out["ce"])
    return out if model.text is None else out | {"text_projected": model.text(condition.hidden)}


def _sampling(step: dict[str, Any], **changes: Any) -> dict[str, Any]:
    factor = step.get("cfg_factor")
    return {"temperature": 0.0, "cfg_scale": 1.0 if factor is None else factor, **changes}


def _generate(case: GoldenCase, model: FlexAR, step: dict[str, Any], **changes: Any) -> tuple[Tensor, Tensor]:
    condition = case.tensor("in/classes").long() if model.config.text is None else _condition(case, model)
    result = model.generate(
        condition, seeds=0, length=step["num_tokens"], return_log_probs=True, **_sampling(step, **changes)
    )
    return result.tokens.ids, result.draw_log_probs.sum(dim=1)


def _greedy(case: GoldenCase, model: FlexAR, step: dict[str, Any]) -> dict[str, Tensor]:
    return dict(zip(step["outputs"], _generate(case, model, step), strict=True))


def _greedy_class(case: GoldenCase, model: FlexAR, step: dict[str, Any]) -> dict[str, Tensor]:
    computed = {}
    for shipped in (False, True):
        ids, log_probs = _generate(case, model, step, shipped_null=shipped)
        for name in step["outputs"]:
            if ("as_shipped" in name) == shipped:
                computed[name] = log_probs if "logprob" in name else ids
    return computed


def _branch(case: GoldenCase, model: FlexAR, step: dict[str, Any]) -> dict[str, Tensor]:
    start, num = step["prefix_len"], step["num_samples"]
    prefix = case.tensor("in/tokens").long()[:1, :start]
    condition = _condition(case, model)[torch.zeros(1, dtype=torch.int64)]
    sampling = model.config.sampling.updated(**_sampling(step))
    rollout = Rollout(model, condition, sampling, prefix=prefix)
    if step["num_tokens"] > start:
        rollout.extend(step["num_tokens"] - start - 1, model.token_noise([0]))
        rollout.fan_out(num, torch.zeros(1, num, 1))
    else:  # nothing new, so the branches are copies
        rollout.branch(num)
    return dict(zip(step["outputs"], (rollout.ids, rollout.draw_log_probs[:, start:].sum(dim=1)), strict=True))


def _filter(case: GoldenCase, model: FlexAR, step: dict[str, Any]) -> dict[str, Tensor]:
    """There a top_p of 0 is off."""
    sampling = SamplingConfig(step["temperature"], step["top_k"], step["top_p"] or 1.0)
    return {step["outputs"][0]: filter_logits(case.tensor("in/sampler_logits"), sampling).softmax(dim=-1)}


_STEPS = {
    "ar_logits": _logits,
    "ar_generate": _greedy,
    "ar_generate_cfg_class": _greedy_class,
    "ar_branch": _branch,
    "filter_probs": _filter,
}
