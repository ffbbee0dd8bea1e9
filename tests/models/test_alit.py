"""ALIT: rollouts, stopping, masks and training, on tiny models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models.test_karl import KL, VQGAN
from tiny_models import pictures

from vistok.errors import ConfigError, VistokError
from vistok.hub import from_pretrained
from vistok.models.alit import Alit, AlitConfig
from vistok.models.titok import TransformerSize
from vistok.tokens import Tokens

SIZE = TransformerSize(48, 2, 2)
BASE = AlitConfig(
    image_size=32,
    patch_size=4,
    vqgan=VQGAN,
    kl=KL,
    encoder=SIZE,
    decoder=SIZE,
    tokens_per_rollout=3,
    num_rollouts=4,
    max_tokens=14,
    mask_threshold=0.06,
    codebook_size=50,
    code_dim=6,
)
KINDS = {
    "vqgan_vq": BASE,
    "vqgan_continuous": replace(BASE, quantizer="none"),
    "kl_vq": replace(BASE, base="kl"),
    "pixels_vq": replace(BASE, base="pixels"),
}


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def make(kind: str) -> Alit:
    torch.manual_seed(0)
    model = Alit(KINDS[kind])
    with torch.no_grad():
        for parameter in (model.encoder.rollout_embed, model.encoder.latent_tokens, model.decoder.latent_pos_embed):
            parameter.normal_()
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and not name.startswith("base"):
                module.weight.normal_(std=module.in_features**-0.5)
    return model.eval()


def errors_of(model: Alit, images: torch.Tensor) -> torch.Tensor:
    """The mean absolute error of every rollout [R, B]."""
    with torch.no_grad():
        latents = model.base.encode(images)
        rollouts = model.rollouts(images, latents, model.base.targets(images, latents))
        shown = [model.base.decode(rollout.out) for rollout in rollouts]
    return torch.stack([(images - image).abs().flatten(1).mean(dim=1) for image in shown])


def test_each_image_stops_for_itself(kind: str) -> None:
    model, images = make(kind), pictures(5)
    errors = errors_of(model, images)
    for quantile in (0.0, 0.3, 0.7, 1.0):
        target = float(errors.flatten().quantile(quantile)) + 1e-4
        tokens = model.encode(images, target_error=target)
        wanted = [3 * (_first_below(column, target) + 1) for column in errors.t().tolist()]
        assert tokens.lengths.tolist() == wanted
        decoded = model.decode(tokens, clamp=False)
        for row, length in enumerate(wanted):
            error = (images[row] - decoded[row]).abs().mean()
            torch.testing.assert_close(error, errors[length // 3 - 1, row], rtol=1e-3, atol=1e-4)


def test_a_batch_gives_each_image_the_tokens_it_has_alone(kind: str) -> None:
    model, images = make(kind), pictures(5)
    middle = errors_of(model, images).flatten().sort().values[5:-5]
    widest = int(middle.diff().argmax())  # between two errors, as one that is met to the last bit may go either way
    target = float(middle[widest : widest + 2].mean())
    whole = model.encode(images, target_error=target)
    decoded = model.decode(whole)
    for row in range(5):
        alone = model.encode(images[row : row + 1], target_error=target)
        assert torch.equal(alone.lengths, whole.lengths[row : row + 1])
        if not model.continuous:
            assert alone == whole[row]
        torch.testing.assert_close(model.decode(whole[row])[0], decoded[row], rtol=1e-4, atol=1e-5)


def test_lengths_do_not_fall_when_the_error_must(kind: str) -> None:
    model, images = make(kind), pictures(4)
    errors = errors_of(model, images)
    reachable = errors.min(dim=0).values.max() + 1e-4
    targets = torch.linspace(float(errors.max()) + 0.01, float(reachable), 5).tolist()
    lengths = torch.stack([model.encode(images, target_error=target).lengths for target in targets])
    assert bool((lengths.diff(dim=0) >= 0).all())


def test_exact_lengths_and_budgets() -> None:
    model, images = make("vqgan_vq"), pictures(3)
    tokens = model.encode(images, length=[3, 12, 6])
    assert tokens.lengths.tolist() == [3, 12, 6]
    assert model.encode(images[1:2], length=12) == tokens[1]
    assert int(model.encode(images, target_error=0.0, max_tokens=7).lengths.max()) <= 6


def test_masks_follow_the_draws() -> None:
    model, images = make("vqgan_vq"), pictures(2)
    latents = model.base.encode(images)
    goal = model.base.targets(images, latents)
    plain = list(model.rollouts(images, latents, goal))
    assert any(bool(rollout.drop.any()) and not bool(rollout.drop.all()) for rollout in plain)
    assert torch.equal(plain[0].drop, plain[0].certainty >= 0.06)
    none = list(model.rollouts(images, latents, goal, uniform=torch.ones(4, 2, 64)))
    assert not none[0].drop.any() and not torch.allclose(none[1].hidden, plain[1].hidden)
    every = list(model.rollouts(images, latents, goal, uniform=torch.zeros(4, 2, 64)))
    torch.testing.assert_close(every[3].hidden, plain[3].hidden)
    off = Alit(replace(KINDS["vqgan_vq"], masking=False)).eval()
    off.load_state_dict(model.state_dict())
    unmasked = list(off.rollouts(images, latents, goal))
    assert all(rollout.drop is None for rollout in unmasked)
    torch.testing.assert_close(unmasked[3].hidden, list(model.rollouts(images, latents, None))[3].hidden)
    drawn = model.encode(images, generator=torch.Generator().manual_seed(0))
    assert drawn == model.encode(images, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target_error": -0.1}, "mean absolute error"),
        ({"target_error": "low"}, "is a number"),
        ({"max_tokens": 2}, "3 to 12"),
        ({"max_tokens": 13}, "3 to 12"),
        ({"length": 4}, "multiples of 3"),
        ({"length": 15}, "multiples of 3"),
        ({"length": [3]}, "each of 2 images"),
        ({"length": 3, "max_tokens": 3}, "either"),
        ({"target": ("psnr", 20.0)}, "target_error"),
    ],
)
def test_bad_options_are_explained(options: dict[str, object], words: str) -> None:
    with pytest.raises(VistokError, match=words):
        make("vqgan_vq").encode(pictures(2), **options)


def test_bad_tokens_and_configurations_are_explained() -> None:
    with pytest.raises(VistokError, match="6 channels"):
        make("vqgan_continuous").decode(Tokens(latents=torch.zeros(1, 2, 5)))
    with pytest.raises(VistokError, match="1 to 12"):
        make("vqgan_vq").decode(Tokens(ids=torch.zeros(1, 13).long(), codebook_size=50))
    for changes in ({"max_tokens": 11}, {"mask_threshold": 2.0}, {"num_rollouts": 0}, {"patch_size": 8}):
        with pytest.raises(ConfigError):
            replace(BASE, **changes)


def test_saving_and_loading_gives_the_same_model(kind: str, tmp_path: Path) -> None:
    model = make(kind)
    model.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    assert again.config == model.config and again.encode(pictures(2)) == model.encode(pictures(2))


def test_training_outputs_and_gradients(kind: str) -> None:
    model = make(kind).train()
    noise = torch.zeros(2, *model.base.noise_shape()) if model.base.noise_shape() else None
    every = model(pictures(2), noise=noise)
    assert len(every["runs"]) == 4 and every["count"] == 12 and "reconstruction" not in every["runs"][0]
    one = model(pictures(2), noise=noise, rollout=2)
    assert len(one["runs"]) == 1 and one["count"] == 9 and one["runs"][0]["reconstruction"].shape == (2, 3, 32, 32)
    loss = one["runs"][0]["reconstruction"].square().mean()
    (loss + sum(v for k, v in one["runs"][0].items() if k.startswith("loss_"))).backward()
    missing = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert missing <= {"encoder.mask_token"} | (
        {"base.codec.quantizer.codebook"} if model.config.base == "vqgan" else set()
    )


def test_gradient_checkpointing_changes_nothing() -> None:
    gradients = []
    for enabled in (False, True):
        model = make("kl_vq").train()
        model.set_gradient_checkpointing(enabled)
        model(pictures(2), noise=torch.zeros(2, 4, 8, 8), rollout=1)["runs"][0]["reconstruction"].mean().backward()
        gradients.append(model.encoder.patch_embed.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def _first_below(errors: list[float], target: float) -> int:
    """The first rollout with an error below the target, else the best one."""
    below = [number for number, error in enumerate(errors) if error < target]
    return below[0] if below else errors.index(min(errors))
