"""The progressive linear code: rounding, order, refinement, prefix errors."""

from __future__ import annotations

import pytest
import torch
from tiny_models import SIDE, make, pictures

from vistok.errors import ConfigError
from vistok.layers.linear_codec import LinearCodec
from vistok.layers.progressive_codec import ProgressiveCodec
from vistok.models.titok import TiTokConfig


def rounded(latents: torch.Tensor) -> torch.Tensor:
    """On the evenly spaced levels -1 to 1, as FSQ of 8 levels puts them."""
    return ((latents + 1) / 2 * 7).round() / 7 * 2 - 1


def scenes(count: int, seed: int = 0) -> torch.Tensor:
    """Pictures that vary much in the large and little in the small, as photographs do."""
    generator = torch.Generator().manual_seed(seed)
    out = torch.full((count, 3, SIDE, SIDE), 0.5)
    for grid, size in ((2, 0.5), (4, 0.25), (8, 0.1)):
        values = torch.rand(count, 3, grid, grid, generator=generator) - 0.5
        out += size * torch.nn.functional.interpolate(values, size=(SIDE, SIDE), mode="bilinear", align_corners=True)
    return out


@pytest.fixture(scope="module")
def codec() -> ProgressiveCodec:
    codec = ProgressiveCodec(SIDE, 32, 2, 8)
    codec.fit(scenes(400, seed=5))
    return codec


def test_an_image_less_frequencies_is_a_projection(codec):
    images = pictures(3)
    points = codec._analyse(images)
    again = codec._synthesise(points)
    torch.testing.assert_close(codec._analyse(again), points, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again.square().sum(), points.square().sum(), rtol=1e-5, atol=0.0)
    grey = torch.full((1, 3, SIDE, SIDE), 0.4)
    torch.testing.assert_close(codec._synthesise(codec._analyse(grey)), grey)


def test_more_digits_say_more_and_errors_are_foretold(codec):
    images = scenes(8, seed=6)
    latents = rounded(codec.encode(images))
    assert latents.shape == (8, 32, 2) and float(latents.abs().max()) <= 1.0
    errors = [(codec.decode(latents[:, :count]) - images).square().mean((1, 2, 3)).sqrt() for count in range(33)]
    torch.testing.assert_close(codec.prefix_errors(images), torch.stack(errors, dim=1), atol=1e-4, rtol=1e-4)
    means = torch.stack(errors).mean(dim=1)
    assert bool((means.diff() < 1e-4).all()), "on average every token helps"


def test_components_of_much_variance_are_refined_and_never_before_they_are_said(codec):
    component = codec.component.tolist()
    assert component.count(component[0]) >= 2
    assert len(set(component)) < len(component)
    for number in set(component):
        widths = [float(codec.table[i].diff().sum()) for i, c in enumerate(component) if c == number]
        assert widths == sorted(widths, reverse=True)


def test_it_says_more_than_plain_components_in_as_many_digits(codec):
    plain = LinearCodec(SIDE, 32, 2)
    plain.fit(scenes(400, seed=5))
    images = scenes(50, seed=7)
    error = {
        type(each): float((each.decode(rounded(each.encode(images))) - images).square().mean())
        for each in (codec, plain)
    }
    assert error[ProgressiveCodec] < 0.7 * error[LinearCodec]


def test_rounding_is_to_the_nearest_level(codec):
    images = pictures(4, seed=8)
    places = ((codec.encode(images) + 1) / 2 * 7).round().long().flatten(1)
    first = codec.component.tolist().index(int(codec.component[0]))
    value = codec._coefficients(images)[:, int(codec.component[0])]
    nearest = (value[:, None] - codec.table[first]).abs().argmin(dim=1)
    assert torch.equal(places[:, first], nearest)


def test_dropped_tokens_are_as_if_they_were_not_there(codec):
    latents = rounded(codec.encode(pictures(2)))
    kept = torch.ones(2, 32)
    kept[:, 5:] = 0
    torch.testing.assert_close(codec.decode(latents, kept=kept), codec.decode(latents[:, :5]), atol=1e-5, rtol=1e-5)


def test_few_images_fit_too():
    codec = ProgressiveCodec(SIDE, 24, 4, 8)
    images = pictures(5, seed=3)
    codec.fit(images)
    out = codec.decode(rounded(codec.encode(images)))
    assert float((out - images).square().mean()) < 1e-3 and bool(out.isfinite().all())


def test_a_model_over_it_has_no_encoder_and_starts_as_the_code():
    model, images = make("fsq_progressive"), pictures(3)
    assert not hasattr(model, "encoder")
    tokens = model.encode(images)
    torch.testing.assert_close(
        model.decode(tokens, clamp=False), model.linear.decode(model.quantizer.lookup(tokens.ids)), atol=1e-5, rtol=1e-5
    )
    with pytest.raises(ConfigError, match="one number of levels"):
        TiTokConfig(quantizer="fsq", levels=(8, 8, 4), code_dim=3, init="progressive")


def test_mixed_components_span_the_same_pictures_and_none_comes_first():
    plain, mixed = LinearCodec(SIDE, 32, 2), LinearCodec(SIDE, 32, 2)
    images = scenes(400, seed=5)
    plain.fit(images)
    mixed.fit(images, mixed=True)
    few = scenes(50, seed=7)
    torch.testing.assert_close(mixed.decode(mixed.encode(few)), plain.decode(plain.encode(few)), atol=1e-4, rtol=1e-4)
    shares = {}
    for name, codec in (("plain", plain), ("mixed", mixed)):
        gained = -codec.prefix_errors(few).square().diff(dim=1).mean(dim=0)
        shares[name] = float(gained.max() / gained.sum())
    assert shares["plain"] > 0.3 > 0.15 > shares["mixed"], shares
