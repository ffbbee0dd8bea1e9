"""Losses of adaptive tokenizers: halting, the errors that training asks for, discriminators in turns."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vistok.errors import ConfigError
from vistok.losses.adaptive import AdaptiveLoss, AdaptiveLossConfig, DiscriminatorBank, balance
from vistok.losses.adversarial import hinge_discriminator_loss
from vistok.losses.halting import ErrorSampler, halting_losses


def test_halting_losses_are_means_of_each_kind() -> None:
    logits = torch.randn(3, 8)
    targets = (torch.arange(8) >= 2).float().expand(3, -1)
    losses = halting_losses(logits, targets)
    torch.testing.assert_close(losses["active"], F.softplus(logits[:, :2]).mean())
    torch.testing.assert_close(losses["halt"], F.softplus(-logits[:, 2:]).mean())
    assert halting_losses(logits, torch.zeros(3, 8)).keys() == {"active"}


def test_errors_start_small_and_become_harder() -> None:
    sampler = ErrorSampler((0.1, 0.2, 0.3, 0.4), start=2)
    assert sampler(torch.tensor([0.0, 0.49, 0.5, 0.999999])).tolist() == [0, 0, 1, 1]
    sampler.update(torch.tensor([0.35, 0.15]))
    wanted = torch.tensor([0.5, 0.5 * 0.99, 0.0, 0.0])
    torch.testing.assert_close(sampler.probabilities, wanted / wanted.sum())
    for _ in range(2000):
        sampler.update(torch.tensor([0.15]))
    assert sampler(torch.rand(100)).sum() == 0


def test_the_sampler_never_draws_an_error_without_probability() -> None:
    sampler = ErrorSampler((0.1, 0.2, 0.3, 0.4), start=3)
    assert int(sampler(torch.tensor([1.0 - 2**-24])).max()) == 2


def config(**changes: object) -> AdaptiveLossConfig:
    options = {"reconstruction": "l1", "adversarial_weight": 0.2, "adversarial_start": 10, "pretrained": False}
    return AdaptiveLossConfig(**(options | changes))


def test_model_and_discriminator_take_turns() -> None:
    loss = AdaptiveLoss(config(adversarial_late_start=20, adversarial_late_weight=0.8))
    learns = [loss.model_learns(step) for step in range(30)]
    assert all(learns[:11]) and [step for step in range(10, 30) if learns[step]] == [10, 19, 28]
    assert [loss.adversarial_weight(step) for step in (10, 19, 20)] == [0.2, 0.2, 0.8]


def test_discriminators_by_number_of_tokens() -> None:
    loss = AdaptiveLoss(config())
    assert [loss.discriminator_index(count) for count in (16, 32, 63, 64, 256, 368)] == [0, 0, 0, 1, 7, 7]


def test_real_and_reconstructed_images_are_normalised_apart() -> None:
    torch.manual_seed(0)
    bank = DiscriminatorBank(2)
    real, fake = torch.rand(2, 2, 3, 32, 32)
    joint = bank(torch.cat([real, fake]), index=1, parts=2)
    torch.testing.assert_close(joint[:2], bank(real, index=1))
    assert not torch.allclose(joint[:2], bank(real, index=0))
    total, terms = AdaptiveLoss(config()).discriminate([joint[:2], joint[2:], joint[2:]])
    torch.testing.assert_close(total, 2 * hinge_discriminator_loss(joint[:2], joint[2:]))
    assert terms.keys() == {"discriminator", "logits_real", "logits_fake"}


def test_balance_of_gradients() -> None:
    weight = torch.tensor([2.0], requires_grad=True)
    ratio = balance(3.0 * weight.sum(), 0.5 * weight.sum(), weight)
    torch.testing.assert_close(ratio, torch.tensor(3.0 / (0.5 + 1e-4)))
    assert not ratio.requires_grad and float(balance(weight.sum(), 0.0 * weight.sum(), weight)) == 1e4
    with torch.no_grad():
        assert float(balance(weight.sum(), weight.sum(), weight)) == 1.0


def test_terms_of_codes_and_their_weights() -> None:
    loss = AdaptiveLoss(AdaptiveLossConfig(stage="latents", run_weights=(2.5,)))
    out, features, codes = torch.randn(2, 4, 7), torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    ids = torch.randint(7, (2, 4))
    runs = [{"out": out, "features": features}, {"out": out, "features": features}]
    total, terms = loss.generator(
        {"runs": runs, "count": 64, "codes": codes, "base_ids": ids}, torch.rand(2, 3, 8, 8), 0
    )
    nll, code = F.cross_entropy(out.flatten(0, 1), ids.flatten()), F.mse_loss(features, codes)
    torch.testing.assert_close(total, 3.5 * nll + 2 * code)
    torch.testing.assert_close(terms["nll_1"], nll)
    total, _ = loss.generator({"runs": runs, "count": 64, "codes": codes, "base_ids": None}, torch.rand(2, 3, 8, 8), 0)
    torch.testing.assert_close(total, 3.5 * code)


@pytest.mark.parametrize(
    "changes",
    [
        {"adversarial_period": 0},
        {"num_discriminators": 0},
        {"stage": "latents"},
        {"perceptual": "convnext_s", "perceptual_weight": 1.0},
        {"alignment": "lite0"},
    ],
)
def test_options_that_make_no_sense(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        config(**changes)
