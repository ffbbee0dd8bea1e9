"""What GigaTok's training adds: PatchGAN, heads on frozen features, augmentation, direct reconstruction, alignment."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import ConfigError
from vistok.losses.adversarial import PatchGan, hinge_discriminator_loss
from vistok.losses.alignment import alignment_loss
from vistok.losses.diff_augment import diff_augment
from vistok.losses.feature_discriminator import FeatureDiscriminator
from vistok.losses.tokenizer import TokenizerLoss, TokenizerLossConfig


def images(count: int, side: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Discriminators.


def test_patchgan_sizes_and_initialisation() -> None:
    gan = PatchGan()
    assert gan(images(2, 256)).shape == (2, 1, 30, 30)
    shapes = [tuple(layer.weight.shape[:2]) for layer in gan.layers if isinstance(layer, nn.Conv2d)]
    assert shapes == [(64, 3), (128, 64), (256, 128), (512, 256), (1, 512)]
    assert [layer.stride[0] for layer in gan.layers if isinstance(layer, nn.Conv2d)] == [2, 2, 2, 1, 1]
    assert abs(float(gan.layers[8].weight.detach().std()) - 0.02) < 1e-3
    assert abs(float(gan.layers[9].weight.detach().mean()) - 1.0) < 1e-2


def test_parts_are_normalised_apart() -> None:
    gan = PatchGan(base_channels=8).train()
    real, fake = images(3), 0.2 * images(3, seed=1)
    together = gan(torch.cat([real, fake]), parts=2)
    torch.testing.assert_close(together, torch.cat([gan(real), gan(fake)]))
    assert not torch.allclose(together, gan(torch.cat([real, fake])))


@pytest.mark.parametrize("name", ["lite0", "vit_tiny_patch16_224"])
def test_heads_learn_and_the_network_does_not(name: str) -> None:
    torch.manual_seed(0)
    made = FeatureDiscriminator(name, pretrained=name == "lite0").train()
    assert not made.network.training and made.heads.training
    pictures = images(2, 64).requires_grad_()
    logits = made(pictures, parts=2)
    assert logits.shape[0] == 2 and logits.ndim == 2
    logits.sum().backward()
    assert pictures.grad.any()
    trained = {key for key, p in made.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained and all(key.startswith("heads.") for key in trained)
    made.requires_grad_(False).requires_grad_(True)
    assert not any(p.requires_grad for p in made.network.parameters())
    assert all(p.requires_grad for p in made.heads.parameters())


# Augmentation.


def test_augmentation_is_drawn_once_and_reproducible() -> None:
    batch = images(3)
    first = diff_augment(batch, generator=generator(1))
    assert torch.equal(first, diff_augment(batch, generator=generator(1)))
    assert not torch.equal(first, diff_augment(batch, generator=generator(2)))
    torch.testing.assert_close(first[1:2], diff_augment(batch[1:2], generator=generator(1)))
    assert first.shape == batch.shape


def test_augmentation_has_a_hole_and_moves_and_passes_gradients() -> None:
    batch = images(1).requires_grad_()
    moved = set()
    for seed in range(20):
        out = diff_augment(batch, generator=generator(seed))
        hole = (out == 0.5).all(dim=1)[0]
        assert 6 * 6 <= int(hole.sum()) <= 6 * 6 + 2 * 4 * 32
        moved.add(tuple(hole.all(dim=1).nonzero().flatten().tolist()))
    assert len(moved) > 3
    out.sum().backward()
    assert batch.grad.any()


# Terms.


def outputs(count: int = 2) -> dict[str, Tensor]:
    return {
        "reconstruction": images(count, seed=1),
        "direct": images(count, seed=2),
        "map_error": torch.tensor(0.7),
        "projected": torch.randn(count, 4, 4, 6, generator=generator(3)),
        "loss_commitment": torch.tensor(0.1),
        "loss_codebook": torch.tensor(0.2),
        "loss_entropy": torch.tensor(-0.05),
    }


def test_the_total_is_the_sum_of_its_terms() -> None:
    config = TokenizerLossConfig(
        reconstruction_weight=4.0,
        alignment_weight=0.5,
        direct_weight=0.3,
        map_weight=2.0,
        quantizer_weight=1.5,
        adversarial_weight=0.5,
        discriminator="patchgan",
        pretrained=False,
    )
    loss, out, pictures, teacher = TokenizerLoss(config), outputs(), images(2), torch.randn(2, 4, 4, 6)
    total, terms = loss.generator(out, pictures, 5, features=teacher)
    assert terms["reconstruction"] == 4.0 * F.mse_loss(out["reconstruction"], pictures)
    assert terms["direct_reconstruction"] == 0.3 * (4.0 * F.mse_loss(out["direct"], pictures))
    assert terms["map"] == pytest.approx(1.4) and terms["quantizer"] == pytest.approx(1.5 * 0.25)
    torch.testing.assert_close(terms["adversarial"], -0.5 * loss.discriminator(out["reconstruction"]).mean())
    torch.testing.assert_close(terms["direct_adversarial"], -0.15 * loss.discriminator(out["direct"]).mean())
    assert terms["alignment"] == 0.5 * alignment_loss(out["projected"], teacher)
    names = (
        "reconstruction",
        "direct_reconstruction",
        "map",
        "quantizer",
        "adversarial",
        "direct_adversarial",
        "alignment",
    )
    torch.testing.assert_close(total, sum(terms[name] for name in names))


def test_the_discriminators_loss_has_its_own_weight() -> None:
    config = TokenizerLossConfig(
        adversarial_weight=0.5, discriminator="patchgan", discriminator_weight=0.25, lecam_weight=0.0, pretrained=False
    )
    loss = TokenizerLoss(config)
    real, fake = torch.randn(2, 1, 3, 3), torch.randn(2, 1, 3, 3)
    torch.testing.assert_close(
        loss.discriminate(real, fake)[0], 0.25 * hinge_discriminator_loss(real, fake).reshape(())
    )


def test_the_way_past_the_tokens_ends_on_time() -> None:
    loss = TokenizerLoss(TokenizerLossConfig(auxiliary_end=10, map_weight=0.0))
    assert loss.forward_options(8) == {"direct": True, "match_map": False}
    assert loss.forward_options(9) == {} and TokenizerLoss(TokenizerLossConfig()).forward_options(0) == {}


def test_maps_of_one_size_are_not_resized() -> None:
    a, b = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)
    assert alignment_loss(a, b) == -F.cosine_similarity(a, b, dim=-1).mean()


def test_unknown_discriminators_are_refused() -> None:
    from vistok.config import from_dict

    with pytest.raises(ConfigError, match="one of patch, patchgan, features"):
        from_dict(TokenizerLossConfig, {"discriminator": "stylegan"})
