"""Golden cases of GigaTok's and LlamaGen's generators: logits, loss, probe, guided generation, filters, layouts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vistok.convert import recognise
from vistok.generate.gpt import Gpt
from vistok.generate.sampling import SamplingConfig, filter_logits, guide_logits
from vistok.hub import empty_model
from vistok.models.base import key_report
from vistok.tokens import Tokens

from golden_cases import GoldenCase, Result
from golden_cases.gigatok import _compare, _input

_FLOOR = 1.0001  # official schedules never switch guidance quite off
_SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {},
    "step": {"cfg_floor": _FLOOR},
    "linear": {"cfg_schedule": "linear", "cfg_floor": _FLOOR},
    "linear_re": {"cfg_schedule": "linear_down", "cfg_floor": _FLOOR},
    "triangular": {"cfg_schedule": "triangular", "cfg_floor": _FLOOR},
    "rectangular": {"cfg_start": 0.05, "cfg_floor": _FLOOR},
}


def run(case: GoldenCase) -> Iterator[Result]:
    """All outputs of a generator's case."""
    source = recognise(case.shapes)
    config = source.read_config(case.shapes, case.config)
    key_map = source.key_map(config)
    model = empty_model(Gpt, config)
    if not case.steps:
        yield _layout(case, model, key_map)
        return
    state = case.state()
    model.load_weights(key_map.to_ours(state), where=case.name)
    back = key_map.to_published(model.state_dict())
    if back.keys() != state.keys() or not all(torch.equal(back[key], state[key]) for key in state):
        raise AssertionError("official -> ours -> official changed names or values")
    if source.read_config(case.shapes, source.wrap_config(config)) != config:
        raise AssertionError("the configuration did not survive")
    with torch.no_grad():
        yield from _run(case, model.eval())


def _layout(case: GoldenCase, model: Gpt, key_map: Any) -> Result:
    own = model.state_dict()
    published = {name: torch.empty(shape, device="meta") for name, shape in case.shapes.items()}
    report = key_report(own, key_map.to_ours(published)) or key_report(published, key_map.to_published(own))
    stored = sum(tensor.numel() for tensor in own.values())
    if not report and case.data.get("num_elements") not in (None, stored):
        report = f"{stored} values, recorded {case.data['num_elements']}"
    return Result("layout", 0.0, 0.0, not report, report)


def _run(case: GoldenCase, model: Gpt) -> Iterator[Result]:
    labels = _input(case, "labels").long().flatten()
    for step in case.steps:
        computed: dict[str, Tensor] = {}
        if step["op"] == "forward":
            indices, targets = _input(case, "indices").long(), _input(case, "targets").long()
            if not torch.equal(indices, targets[:, :-1]):  # then the last id is of no account to the logits
                targets = torch.cat([indices, targets[:, -1:]], dim=1)
            logits = model.logits(model.states(targets, labels))
            own = _input(case, "targets").long()
            tokens = Tokens(ids=targets, codebook_size=model.codebook_size)
            computed = {
                "logits": logits,
                "loss": torch.nn.functional.cross_entropy(logits.flatten(0, 1), own.flatten()),
                "probe_feat": model.features(tokens),
            }
        elif step["op"] == "generate":
            length = int(_input(case, "num_tokens"))
            found = re.search(r"window_start ([\d.]+)", step["notes"])
            window = float(found[1]) if found else 0.0
            for output in step["outputs"]:
                computed[output["name"]] = _generate(model, labels, length, window, output["name"])
        elif step["op"] == "sampling_probabilities":
            logits, null = (
                model.logits(model.read_condition(rows, model.new_cache(len(rows))))
                for rows in (labels, model.null_condition(labels))
            )
            guided = guide_logits(logits, null, SamplingConfig(cfg_scale=2.0))
            computed["prefill_guided_logits"] = guided
            for output in step["outputs"]:
                if found := re.fullmatch(r"probs_t([\d.]+)_k(\d+)_p([\d.]+)", output["name"]):
                    sampling = SamplingConfig(float(found[1]), int(found[2]), float(found[3]))
                    computed[output["name"]] = filter_logits(guided, sampling).softmax(dim=-1)
        for output in step["outputs"]:
            if output["name"] in computed:
                yield _compare(case, step, output["name"], computed[output["name"]])


def _generate(model: Gpt, labels: Tensor, length: int, window: float, name: str) -> Tensor:
    """Greedy ids of an output named as ``gen_greedy_cfg3_linear``; ``window`` is where the step schedule begins.

    There a schedule runs its course in the tokens that are asked for, and a scale below 1 is off.
    """
    found = re.fullmatch(r"gen_greedy_cfg([\d.]+)(?:_([a-z_]+)([\d.]+)?)?", name)
    schedule, scale = found[2] or "constant", max(1.0, float(found[1]))
    options = _SCHEDULES[schedule] | ({"cfg_start": float(found[3] or window)} if schedule == "step" else {})
    options |= {"cfg_scale": scale, "cfg_tokens": length} if scale > 1.0 else {"cfg_scale": 1.0, "cfg_floor": 1.0}
    return model.generate(labels, seeds=0, length=length, temperature=0.0, **options).tokens.ids
