"""Golden cases of RAR: logits in any order, losses, guided generation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.generate.autoregressive import Rollout
from vistok.generate.rar import Rar
from vistok.generate.sampling import SamplingConfig, guide_logits

from golden_cases import GoldenCase, Result


def run_generator(case: GoldenCase, model: Rar) -> Iterator[Result]:
    """All outputs of a generator's case."""
    greedy: Tensor | None = None
    with torch.no_grad():
        for step in case.steps:
            labels = case.input(step, "labels").long().flatten()
            operation, name = step["op"], step["outputs"][0]["name"]
            if operation == "generate_greedy":
                ids = model.generate(labels, seeds=0, **_sampling(step) | {"temperature": 0.0}).tokens.ids
                greedy = ids if greedy is None else greedy
                computed = {name: ids}
            elif operation == "generate_sampled":
                settings = SamplingConfig(**_sampling(step))
                rollout = Rollout(model, labels, settings)
                rollout.extend(model.num_tokens, case.input(step, "u").t()[..., None])
                computed = {name: rollout.ids}
            elif operation == "cfg_logits":
                computed = _guided(model, labels, greedy, SamplingConfig(**_sampling(step)))
            else:
                computed = _forward(case, model, step, labels)
            yield from case.compare_all(step, computed)


def _sampling(step: dict[str, Any]) -> dict[str, Any]:
    """Their settings as ours; a scale of 0 is their way to say that there is no guidance."""
    scale = step["args"]["guidance_scale"]
    return {
        "temperature": step["args"].get("randomize_temperature", 1.0),
        "cfg_scale": scale or 1.0,
        "cfg_schedule": "power_cosine" if scale else "constant",
        "cfg_power": step["args"].get("guidance_scale_pow", 1.0),
    }


def _forward(case: GoldenCase, model: Rar, step: dict[str, Any], labels: Tensor) -> dict[str, Tensor]:
    ids = case.input(step, "ids").long()
    null = model.null_condition(labels)
    out = {
        "logits_raster": model.logits(model.states(ids, labels, last=True)),
        "logits_uncond": model.logits(model.states(ids, null, last=True)),
        # The rows of the table that the classes have.
        "condition_ids": labels + model.config.vocab_size + 1,
        "none_ids": torch.full_like(labels, model.config.vocab_size + 1 + model.config.num_classes),
        "ar_loss_raster": model(ids, labels)["loss"],
    }
    if case.has_input(step, "orders"):
        orders = case.input(step, "orders").long()
        permuted = ids.gather(1, orders)
        logits = model.logits(model.states(permuted, labels, orders=orders, last=True))
        out |= {
            "logits_permuted": logits,
            "labels_permuted": permuted,
            "ar_loss_permuted": F.cross_entropy(logits[:, :-1].flatten(0, 1), permuted.flatten()),
            "ar_correct_permuted": (logits[:, :-1].argmax(dim=-1) == permuted).float().mean(),
        }
    return out


def _guided(model: Rar, labels: Tensor, ids: Tensor, sampling: SamplingConfig) -> dict[str, Tensor]:
    both = [model.logits(model.states(ids, rows)) for rows in (labels, model.null_condition(labels))]
    scales, logits = [], []
    for position in range(model.num_tokens):
        settings = model.sampling_at(sampling, position)
        scales.append(settings.cfg_scale)
        logits.append(guide_logits(both[0][:, position], both[1][:, position], settings))
    return {"cfg_scale": torch.tensor(scales), "cfg_logits": torch.stack(logits, dim=1)}
