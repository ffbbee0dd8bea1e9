"""Golden cases of MaskGen and of its diffusion loss."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from vistok.convert.maskgen import HEAD_KEYS
from vistok.layers.diffusion_head import DiffusionHead
from vistok.losses.diffusion import GaussianDiffusion

from golden_cases import GoldenCase, Result

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
