"""Golden cases of MaskGen and of its diffusion loss."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vistok.convert.maskgen import HEAD_KEYS, published_sampling
from vistok.generate.captions import CaptionCondition
from vistok.generate.maskgen import MaskGen, MaskGenSampling
from vistok.generate.maskgen_sides import counts_left
from vistok.layers.diffusion_head import DiffusionHead, guide_noise
from vistok.losses.diffusion import GaussianDiffusion

from golden_cases import GoldenCase, Result, StoredNoise

_TIGHT = {"rtol": 1e-4, "atol": 1e-9}
_GRADIENTS = {"rtol": 1e-4, "atol": 1e-6}


def run_diffusion_loss(case: GoldenCase) -> Iterator[Result]:
    """The loss of a diffusion head, its gradients, and the noise schedule."""
    config, losses = case.config["model"], case.config["losses"]
    head = DiffusionHead(
        config["vq_model"]["token_size"],
        config["maskgen"]["decoder_embed_dim"],
        width=losses["diffloss_w"],
        depth=losses["diffloss_d"],
    )
    state = case.state()
    head.load_state_dict(HEAD_KEYS.to_ours(state))
    assert HEAD_KEYS.to_published(head.state_dict()).keys() == state.keys()
    diffusion = GaussianDiffusion()
    parameters = dict(head.named_parameters())
    for step in case.steps:
        target, z, mask, t, noise = (case.input(step, name) for name in ("target", "z", "mask", "t", "noise"))
        noisy = diffusion.add_noise(target, noise, t)
        rows = diffusion.losses(head(noisy, t, z), target, noise, noisy, t)
        loss = (rows * mask).sum() / mask.sum()
        loss.backward()
        gradients = [parameters[HEAD_KEYS.name_to_ours(name)].grad for name in step["args"]["grad_names"]]
        yield case.compare(step, "loss", loss, **_TIGHT)
        yield case.compare(step, "grad_norms", torch.stack([gradient.norm() for gradient in gradients]), **_GRADIENTS)
        yield case.compare(step, "alphas_cumprod", diffusion.levels[::50].float(), rtol=1e-6, atol=0.0)
        steps = diffusion.respaced(int(losses["num_sampling_steps"])).timesteps
        yield case.compare(step, "gen_timestep_map", steps)


@torch.no_grad()
def run_generator(case: GoldenCase, model: MaskGen) -> Iterator[Result]:
    """Forward passes, the reverse steps of the diffusion head, and whole sampling runs."""
    timesteps = None
    for step in case.steps:
        operation = step["op"]
        if operation == "forward":
            computed = _forward(case, model, step)
        elif operation == "diffusion_net":
            timesteps = case.input(step, "t")
            x, condition = case.input(step, "x_t"), case.input(step, "cvec")
            computed = {"net": model.side.head(x, timesteps, condition)}
        elif operation == "reverse_step":
            computed = _reverse(case, model, step, timesteps)
        elif operation != "generate":
            continue
        elif model.continuous:
            name = step["outputs"][0]["name"]
            # The recording wants it relative: values of the scale of 1e4 go through one another, and those near 0 keep their errors.
            atol = 1e-4 * float(case.tensor(f"out/{name}").abs().max())
            yield case.compare(step, name, _fill_latents(case, model, step), atol=atol)
            continue
        else:
            computed = {step["outputs"][0]["name"]: _fill_ids(case, model, step)}
        yield from case.compare_all(step, computed)


def _condition(case: GoldenCase, step: dict[str, Any], score: float | None) -> CaptionCondition:
    text, pooled = case.input(step, "text"), case.input(step, "pooled")[:, 0]
    null = {}
    if case.has_input(step, "null_text"):
        null = {"null_states": case.input(step, "null_text"), "null_pooled": case.input(step, "null_pooled")[:, 0]}
    scores = None if score is None else torch.full((len(text),), score)
    return CaptionCondition(text, pooled, **null, scores=scores)


def _forward(case: GoldenCase, model: MaskGen, step: dict[str, Any]) -> dict[str, Tensor]:
    score = step["args"].get("aesthetic_score")
    condition = _condition(case, step, score)
    if model.continuous:
        masked = case.input(step, "mask").bool()
        states = model.states(case.input(step, "tokens"), masked, condition)
        scores = torch.full((len(masked),), model.config.aesthetic_score if score is None else score)
        features = {"micro_condition": model.micro_features(scores)} if model.config.micro_dim else {}
        return {"z": states, **features}
    ids = case.input(step, "ids")
    masked = ids == model.codebook_size
    return {"logits": model.side.logits(model.states(ids.masked_fill(masked, 0), masked, condition))}


def _reverse(case: GoldenCase, model: MaskGen, step: dict[str, Any], timesteps: Tensor) -> dict[str, Tensor]:
    x, condition = case.input(step, "x_t"), case.input(step, "cvec")
    diffusion = model.side.diffusion.respaced(model.config.sampling.diffusion_steps)
    assert diffusion.timesteps.tolist() == step["args"]["timestep_map"]
    computed = {}
    for index, timestep in enumerate(diffusion.timesteps):
        output = model.side.head(x, timestep.expand(len(x)), condition)
        result = diffusion.reverse(output, x, torch.full((len(x),), index))
        computed[f"mean_{index}"] = result.mean
        computed[f"log_variance_{index}"] = result.log_variance
        computed[f"pred_xstart_{index}"] = result.clean
    half = len(x) // 2
    doubled = torch.cat([x[:half], x[:half]])
    output, null = model.side.head(doubled, timesteps, condition).chunk(2)
    # The official halves both get the guided noise, each with its own variance.
    found = re.search(r"guidance ([\d.]*\d)", step.get("notes", ""))
    guided = guide_noise(output, null, float(found[1]) if found else 3.0)
    other = torch.cat([guided[:, : x.shape[1]], null[:, x.shape[1] :]], dim=-1)
    return computed | {"net_cfg": torch.cat([guided, other])}


def _sampling(model: MaskGen, args: dict[str, Any]) -> MaskGenSampling:
    if model.continuous:
        scale, schedule, steps = args["cfg"], args["cfg_schedule"], args["num_iter"]
        diffusion_steps = model.config.sampling.diffusion_steps
        return published_sampling("kl", scale, schedule, steps, args["temperature"], diffusion_steps=diffusion_steps)
    temperature = args["randomize_temperature"]
    sampling = published_sampling(
        "vq", args["guidance_scale"], args["guidance_decay"], args["num_sample_steps"], temperature
    )
    anneal = args.get("softmax_temperature_annealing", True)
    return sampling.updated(
        cfg_power=args.get("guidance_decay_scale_pow", 1.0),
        random_confidence=args.get("prob_sorting", True),
        anneal=anneal,
        # Without annealing the official logits are divided by the noise's temperature.
        temperature=1.0 if anneal else temperature,
    )


def _fill_ids(case: GoldenCase, model: MaskGen, step: dict[str, Any]) -> Tensor:
    return model.fill_ids(_condition(case, step, None), StoredNoise(case, step), _sampling(model, step["args"])).ids


def _fill_latents(case: GoldenCase, model: MaskGen, step: dict[str, Any]) -> Tensor:
    condition = _condition(case, step, step["args"].get("aesthetic_score"))
    sampling = _sampling(model, step["args"])
    orders, stream = case.input(step, "orders"), case.input(step, "noise")
    noise = _noise_by_position(stream, orders, sampling, model.config.code_dim)
    latents, _ = model.fill_latents(condition, orders, noise, sampling)
    return latents.transpose(1, 2)[:, :, None]


def _noise_by_position(stream: Tensor, orders: Tensor, sampling: MaskGenSampling, channels: int) -> Tensor:
    """The recorded draws in their order of use -> [S, B, L, C]: the noise of each position."""
    rows, length = orders.shape
    noise = torch.zeros(sampling.diffusion_steps, rows, length, channels)
    place, left = 0, length
    masked = torch.ones(rows, length, dtype=torch.bool)
    for count in counts_left(length, sampling.steps):
        drawn = masked & torch.ones_like(masked).scatter(1, orders[:, :count], False)
        tokens = int(drawn.sum())
        halves = 2 if sampling.guided else 1
        for turn in range(sampling.diffusion_steps + 1):  # where to begin, then one a step; the last one's is not used
            size = tokens * (halves if turn else 1)
            part = stream[place : place + size * channels].view(size, channels)
            place += size * channels
            if turn < sampling.diffusion_steps:
                noise[turn][drawn] = part[:tokens]
        masked, left = masked & ~drawn, count
    assert place == stream.numel() and left == 0
    return noise
