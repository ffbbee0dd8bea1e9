"""The diffusion of single tokens and its head."""

import math

import pytest
import torch
from torch import Tensor

from vistok.errors import ConfigError
from vistok.layers.diffusion_head import DiffusionHead, guide_noise
from vistok.losses.diffusion import GaussianDiffusion


def _perfect_network(diffusion: GaussianDiffusion, clean: Tensor):
    """The output of a network that knows the clean tokens and has the posterior's variance."""

    def network(x: Tensor, timesteps: Tensor) -> Tensor:
        levels = diffusion.levels.float()[torch.searchsorted(diffusion.timesteps, timesteps)][:, None]
        noise = (x - levels.sqrt() * clean) / (1 - levels).sqrt()
        return torch.cat([noise, -torch.ones_like(noise)], dim=-1)

    return network


def test_sampling_with_the_right_noise_ends_at_the_clean_tokens():
    diffusion = GaussianDiffusion().respaced(20)
    clean = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(20, 6, 4, generator=torch.Generator().manual_seed(1))
    sample = diffusion.sample(_perfect_network(diffusion, clean), noise)
    torch.testing.assert_close(sample, clean, rtol=1e-3, atol=1e-3)


def test_cut_clean_tokens_keep_a_poor_network_from_running_away():
    diffusion = GaussianDiffusion().respaced(20)
    clean = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(20, 6, 4, generator=torch.Generator().manual_seed(1))
    perfect = _perfect_network(diffusion, clean)
    torch.testing.assert_close(diffusion.sample(perfect, noise, clip_denoised=5.0), clean, rtol=1e-3, atol=1e-3)

    def poor(x: Tensor, timesteps: Tensor) -> Tensor:
        return torch.zeros(len(x), 2 * x.shape[1])

    assert diffusion.sample(poor, noise).abs().max() > 100
    assert diffusion.sample(poor, noise, clip_denoised=5.0).abs().max() <= 5.0


def test_the_loss_of_the_right_output_is_the_last_steps_likelihood_alone():
    diffusion = GaussianDiffusion()
    clean = 0.5 * torch.randn(8, 4).clamp(-1.9, 1.9)
    steps = torch.tensor([0, 1, 5, 100, 400, 700, 900, 999])
    noise = torch.randn(8, 4)
    output = torch.cat([noise, -torch.ones(8, 4)], dim=-1)
    losses = diffusion.losses(output, clean, noise, diffusion.add_noise(clean, noise, steps), steps)
    assert losses[0] > 0
    torch.testing.assert_close(losses[1:], torch.zeros(7), rtol=0, atol=2e-4)


def test_the_bound_trains_the_variance_alone():
    diffusion = GaussianDiffusion()
    clean, noise, steps = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 3, 50, 300, 800])
    output = torch.zeros(5, 6, requires_grad=True)
    diffusion.losses(output, clean, noise, diffusion.add_noise(clean, noise, steps), steps).sum().backward()
    torch.testing.assert_close(output.grad[:, :3], -2 * noise / 3)
    assert output.grad[:, 3:].abs().min() > 0


@pytest.mark.parametrize("num", [2, 7, 100, 1000])
def test_respaced_steps_have_the_noise_levels_of_the_whole_process(num):
    whole = GaussianDiffusion()
    part = whole.respaced(num)
    assert len(part.timesteps) == num
    assert part.timesteps[0] == 0
    assert part.timesteps[-1] == 999
    torch.testing.assert_close(part.levels, whole.levels[part.timesteps])


def test_noise_levels_follow_the_cosine():
    levels = GaussianDiffusion().levels
    wanted = math.cos(math.pi / 2 * (0.5 + 0.008) / 1.008) ** 2 / math.cos(math.pi / 2 * 0.008 / 1.008) ** 2
    assert float(levels[499]) == pytest.approx(wanted, rel=1e-9)


def test_numbers_of_steps_that_make_no_process_are_refused():
    with pytest.raises(ConfigError, match="2 to 1000"):
        GaussianDiffusion().respaced(1)
    with pytest.raises(ConfigError, match="at least two"):
        GaussianDiffusion(1)


def test_a_new_head_predicts_nothing_and_learns_in_all_its_parts():
    head = DiffusionHead(4, 12, width=16, depth=2)
    x, t, condition = torch.randn(6, 4), torch.randint(1000, (6,)), torch.randn(6, 12)
    assert torch.equal(head(x, t, condition), torch.zeros(6, 8))
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    head(x, t, condition).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.norm() > 0 for parameter in head.parameters())


def test_guidance_leaves_the_variance_to_the_condition():
    output, null = torch.randn(3, 8), torch.randn(3, 8)
    guided = guide_noise(output, null, 2.5)
    assert torch.equal(guided[:, 4:], output[:, 4:])
    torch.testing.assert_close(guided[:, :4], null[:, :4] + 2.5 * (output - null)[:, :4])
    torch.testing.assert_close(guide_noise(output, null, 1.0), output)
