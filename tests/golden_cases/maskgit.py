"""Golden cases of the MaskGIT generators: logits, filling in under every guidance, masks and losses of training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vistok.convert.maskgit import published_sampling
from vistok.generate.masked import masked_loss, masks_of
from vistok.generate.maskgit import MaskGit

from golden_cases import GoldenCase, Result, StoredNoise


@torch.no_grad()
def run_generator(case: GoldenCase, model: MaskGit) -> Iterator[Result]:
    """All outputs of a generator's case."""
    masks = None
    for step in case.steps:
        if step["op"] == "forward":
            logits, null = _forward(case, model, step)
            computed = {"logits_cond": logits, "logits_uncond": null}
        elif step["op"] == "mask_tokens":
            clean = case.input(step, "clean").long()
            # Theirs hides where the sorting permutation itself is small; its ranks are itself.
            masks = masks_of(case.input(step, "u_t"), case.input(step, "u_perm").argsort(dim=-1))
            computed = {"masks": masks, "masked_tokens": clean.masked_fill(masks, model.config.vocab_size)}
        elif step["op"] == "mlm_loss":
            logits, _ = _forward(case, model, step)
            clean = case.input(step, "clean").long()
            config = model.config
            weights = {"label_smoothing": config.label_smoothing, "unmasked_weight": config.unmasked_weight}
            losses = masked_loss(logits, clean, masks, **weights)
            computed = {"mlm_loss": losses["loss"], "mlm_correct": losses["accuracy"]}
        elif step["op"] == "generate":
            computed = {step["outputs"][0]["name"]: _fill_ids(case, model, step)}
        else:
            continue
        yield from case.compare_all(step, computed)


def _forward(case: GoldenCase, model: MaskGit, step: dict[str, Any]) -> tuple[Tensor, Tensor]:
    ids, labels = case.input(step, "ids").long(), case.input(step, "labels").long().flatten()
    masked = ids == model.config.vocab_size
    ids = ids.masked_fill(masked, 0)
    return model.logits(ids, masked, labels), model.logits(ids, masked, model.null_condition(labels))


def _fill_ids(case: GoldenCase, model: MaskGit, step: dict[str, Any]) -> Tensor:
    args = step["args"]
    sampling = published_sampling(
        args["guidance_scale"],
        args["guidance_decay"],
        steps=args["num_sample_steps"],
        temperature=args["randomize_temperature"],
        power=args.get("guidance_scale_pow", 3.0),
        anneal=args.get("softmax_temperature_annealing", False),
    )
    return model.fill_ids(case.input(step, "labels").long().flatten(), StoredNoise(case, step), sampling).ids
