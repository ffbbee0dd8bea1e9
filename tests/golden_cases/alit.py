"""Golden cases of ALIT: layouts, and rollouts with their masks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vistok.models.alit import Alit

from golden_cases import GoldenCase, Result
from golden_cases.karl import build, code_margins, compare_ids, name_tensors, read_input, run_layout


def run(case: GoldenCase) -> Iterator[Result]:
    """All outputs of a case."""
    name_tensors(case)
    if not case.steps:
        yield run_layout(case)
        return
    for step in case.steps:
        if step["op"] == "encode_rollouts":
            yield from _run_rollouts(case, step)


@torch.no_grad()
def _run_rollouts(case: GoldenCase, step: dict[str, Any]) -> Iterator[Result]:
    model = build(case)
    assert isinstance(model, Alit)
    images, noise, uniform = (read_input(case, name) for name in ("image", "vae_noise", "uniform"))
    latents = model.base.encode(images, noise=noise)
    goal = model.base.targets(images, latents)
    computed: dict[str, Tensor] = {}
    errors = []
    for number, rollout in enumerate(model.rollouts(images, latents, goal, uniform=uniform)):
        reconstruction = model.base.decode(rollout.out)
        errors.append(float((images - reconstruction).abs().mean()))
        values = {
            "latents": rollout.hidden,
            "z": rollout.values,
            "indices": rollout.ids,
            "correct_code_prob": rollout.certainty,
            "drop": None if rollout.drop is None else rollout.drop.long(),
            "reconstruction": reconstruction,
            "l1": torch.tensor(errors[-1]),
        }
        if model.quantizer is not None:
            unit, rows = (torch.nn.functional.normalize(x, dim=-1) for x in (rollout.values, model.quantizer.codebook))
            values["token_margin"] = code_margins(unit, rows)
        computed |= {f"{name}_{number}": value for name, value in values.items() if value is not None}
    # There one rollout is chosen for the whole batch; ours is each image's own.
    threshold = float(read_input(case, "threshold"))
    reached = [number for number, error in enumerate(errors) if error < threshold]
    computed["selected_rollout"] = torch.tensor(reached[0] if reached else errors.index(min(errors)))
    if len(images) == 1:
        chosen = model.encode(images, target_error=threshold, noise=noise, uniform=uniform)
        assert int(chosen.lengths[0]) == (int(computed["selected_rollout"]) + 1) * model.config.tokens_per_rollout
    names = {output["name"] for output in step["outputs"]}
    for name in (output["name"] for output in step["outputs"]):
        margins = name.replace("indices", "token_margin")
        if name not in computed:
            continue
        if name.startswith("indices") and margins in names:
            yield compare_ids(case, step, name, computed[name], margins)
        else:
            yield case.compare(step, name, computed[name])
