"""The evaluation of reconstructions, on tokenizers whose results can be worked out by hand."""

from __future__ import annotations

import json
import logging
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from vistok.data.sources import BaseSource
from vistok.errors import CheckpointError, ConfigError, DataError, VistokError
from vistok.metrics import (
    FeatureStats,
    Protocol,
    evaluate_reconstruction,
    format_table,
    frechet_distance,
    instruments,
    psnr,
    save_result,
    ssim,
)
from vistok.metrics.extractor import FeatureExtractor
from vistok.tokens import Tokens

SIZE, GRID = 16, 4
CPU_ONLY = {"features": "none", "lpips": False, "progress": False}


class MeanTokenizer(nn.Module):
    """A token is the grey level of a 4 x 4 patch; missing ones are decoded as mid-grey."""

    family, name, image_size, num_tokens = "mean", "", SIZE, GRID * GRID
    codebook_size: int | tuple[int, ...] | None = 256
    ordered, adaptive, continuous, conditional = True, False, False, False
    device, dtype = torch.device("cpu"), torch.float32

    def weight_hash(self) -> str:
        return "0" * 16

    def encode(self, images: Tensor) -> Tokens:
        assert images.dtype == torch.float32 and images.shape[1:] == (3, SIZE, SIZE)
        levels = nn.functional.avg_pool2d(images.mean(1, keepdim=True), SIZE // GRID).flatten(1)
        return Tokens(ids=(levels * 255).round().long(), codebook_size=self.codebook_size)

    def decode(self, tokens: Tokens, *, condition: Tensor | None = None, clamp: bool = True) -> Tensor:
        levels = torch.full((len(tokens), self.num_tokens), 0.5)
        for row, length in enumerate(tokens.lengths.tolist()):
            levels[row, :length] = tokens.ids[row, :length] / 255
        small = levels.view(-1, 1, GRID, GRID).expand(-1, 3, -1, -1)
        return nn.functional.interpolate(small, scale_factor=SIZE // GRID)


class Pictures(BaseSource):
    """Blocky pictures of any shape, some of them unreadable."""

    def __init__(self, count: int, unreadable: tuple[int, ...] = ()) -> None:
        super().__init__("pictures:", ("even", "odd"))
        self.count, self.unreadable = count, unreadable

    def __len__(self) -> int:
        return self.count

    def image(self, index: int) -> Image.Image:
        if index in self.unreadable:
            raise DataError(f"{self.name(index)} is broken")
        rng = np.random.default_rng(index)
        blocks = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        return Image.fromarray(blocks).resize((20 + index, 18), Image.Resampling.BILINEAR)

    def label(self, index: int) -> int:
        return index % 2

    def caption(self, index: int) -> str:
        return f"picture {index}"

    def name(self, index: int) -> str:
        return f"{index:03d}.png"


class MeanColour(FeatureExtractor):
    """Three features, where the real ones have thousands."""

    name, metric, dims, package = "inception", "fid", 3, "timm"

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.weight_hash = "ab" * 8

    def _features(self, images: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        return {"pooled": images.mean(dim=(2, 3))}


@pytest.fixture
def mean_colour(monkeypatch) -> None:
    monkeypatch.setattr(instruments, "choose_extractor", lambda names, **_: (MeanColour(), ""))


def by_hand(count: int, *, eight_bit: bool = True) -> tuple[Tensor, Tensor]:
    from vistok.data import crop_image, to_tensor

    source, tokenizer = Pictures(count), MeanTokenizer()
    images = torch.stack([to_tensor(crop_image(source.image(index), SIZE)) for index in range(count)])
    decoded = tokenizer.decode(tokenizer.encode(images))
    return images, (decoded * 255).round() / 255 if eight_bit else decoded


def test_equals_the_metrics_by_hand(mean_colour) -> None:
    images, decoded = by_hand(10)
    result = evaluate_reconstruction(MeanTokenizer(), Pictures(10), batch_size=3, lpips=False, progress=False)
    assert result["psnr"] == pytest.approx(float(psnr(decoded, images).mean()), rel=1e-9)
    assert result["ssim"] == pytest.approx(float(ssim(decoded, images).mean()), rel=1e-9)
    both = [FeatureStats(3), FeatureStats(3)]
    for stats, pictures in zip(both, (images, decoded), strict=True):
        stats.update(pictures.mean(dim=(2, 3)))
    assert result["fid"] == pytest.approx(frechet_distance(*both), rel=1e-6)
    assert result["features"]["weight_hash"] == "ab" * 8
    assert result["codebook"]["tokens"] == 10 * GRID * GRID
    assert (result["tokens_per_image"], result["bits_per_pixel"]) == (16.0, 16 * 8 / SIZE**2)
    assert (result["images"], result["unreadable"], result["left_out"]) == (10, 0, {"lpips": "not asked for"})


def test_states_what_a_comparison_needs() -> None:
    result = evaluate_reconstruction(MeanTokenizer(), Pictures(4), **CPU_ONLY)
    assert result["protocol"]["name"] == "titok"
    assert result["data"]["listing_hash"] == Pictures(4).listing_hash()
    assert {"vistok", "torch", "torchvision", "numpy"} <= result["versions"].keys()
    assert (result["model"], result["weight_hash"], result["dtype"]) == ("mean", "0" * 16, "float32")
    assert result["device"] == "cpu"
    assert result["images_per_second"] > 0 and result["seconds"] > 0
    assert result["deviations"] == ["4 images instead of 50000 (ImageNet-1k validation)"]
    assert "fid" not in result and "fd_lite0" not in result
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_rounding_to_eight_bits_is_the_protocols() -> None:
    images, decoded = by_hand(4, eight_bit=False)
    decoded = decoded + 0.001

    class Between(MeanTokenizer):
        def decode(self, tokens: Tokens, **options) -> Tensor:
            return super().decode(tokens) + 0.001

    exact = evaluate_reconstruction(
        Between(), Pictures(4), protocol=Protocol(name="floats", eight_bit=False), **CPU_ONLY
    )
    assert exact["psnr"] == pytest.approx(float(psnr(decoded.clamp(0, 1), images).mean()), rel=1e-9)
    rounded = evaluate_reconstruction(Between(), Pictures(4), **CPU_ONLY)
    assert rounded["psnr"] == evaluate_reconstruction(MeanTokenizer(), Pictures(4), **CPU_ONLY)["psnr"]
    assert rounded["psnr"] != exact["psnr"]


@pytest.mark.parametrize(("batch_size", "num_workers"), [(1, 0), (4, 1), (100, 0)])
def test_batches_do_not_matter(batch_size: int, num_workers: int) -> None:
    whole = evaluate_reconstruction(MeanTokenizer(), Pictures(9, (2, 5)), batch_size=2, **CPU_ONLY)
    other = evaluate_reconstruction(
        MeanTokenizer(), Pictures(9, (2, 5)), batch_size=batch_size, num_workers=num_workers, **CPU_ONLY
    )
    for key in ("psnr", "ssim", "codebook", "images", "unreadable_names"):
        assert other[key] == whole[key]


def test_unreadable_pictures_are_counted_and_named(caplog) -> None:
    with caplog.at_level(logging.WARNING):
        result = evaluate_reconstruction(MeanTokenizer(), Pictures(5, (0, 3)), batch_size=1, **CPU_ONLY)
    assert (result["images"], result["unreadable"], result["unreadable_names"]) == (3, 2, ["000.png", "003.png"])
    assert "2 of 5 pictures cannot be read: 000.png, 003.png" in caplog.text
    assert "unreadable: 2: 000.png, 003.png" in format_table(result)
    with pytest.raises(DataError, match=r"none of 2 pictures of 'pictures:' can be read: 000\.png"):
        evaluate_reconstruction(MeanTokenizer(), Pictures(2, (0, 1)), **CPU_ONLY)


def test_limit_is_evenly_spaced() -> None:
    seen = []

    class Watched(Pictures):
        def image(self, index: int) -> Image.Image:
            seen.append(index)
            return super().image(index)

    result = evaluate_reconstruction(MeanTokenizer(), Watched(10), limit=4, **CPU_ONLY)
    assert seen == [0, 2, 5, 7]
    assert (result["images"], result["data"]["limit"], result["data"]["size"]) == (4, 4, 10)
    assert evaluate_reconstruction(MeanTokenizer(), Pictures(3), limit=99, **CPU_ONLY)["images"] == 3


def test_length_keeps_leading_tokens() -> None:
    full = evaluate_reconstruction(MeanTokenizer(), Pictures(4), **CPU_ONLY)
    short = evaluate_reconstruction(MeanTokenizer(), Pictures(4), length=5, **CPU_ONLY)
    assert (short["tokens_per_image"], short["length"], short["codebook"]["tokens"]) == (5.0, 5, 20)
    assert short["bits_per_pixel"] == pytest.approx(full["bits_per_pixel"] * 5 / 16)
    assert short["psnr"] < full["psnr"]


def test_a_target_keeps_as_many_tokens_as_each_picture_needs() -> None:
    model, source = MeanTokenizer(), Pictures(7)
    full = evaluate_reconstruction(model, source, **CPU_ONLY)
    result = evaluate_reconstruction(model, source, target=("psnr", 14.0), batch_size=3, **CPU_ONLY)
    assert evaluate_reconstruction(model, source, target=("psnr", 14.0), **CPU_ONLY)["psnr"] == result["psnr"]
    assert 1 < result["tokens_per_image"] < 16 and 13.9 < result["psnr"] < full["psnr"]
    assert result["target"] == {"metric": "psnr", "value": 14.0, "reached": 5} and "target" not in full
    assert "5 of 7 images" in format_table(result)
    far = evaluate_reconstruction(model, source, target=("psnr", 99.0), **CPU_ONLY)
    assert far["target"]["reached"] == 0 and far["psnr"] == full["psnr"]
    with pytest.raises(VistokError, match="without a length"):
        evaluate_reconstruction(model, source, target=("psnr", 14.0), length=3, **CPU_ONLY)


def test_perfect_reconstructions_have_a_finite_result() -> None:
    class Perfect(MeanTokenizer):
        def encode(self, images: Tensor) -> Tokens:
            self.images = images
            return super().encode(images)

        def decode(self, tokens: Tokens, **options) -> Tensor:
            return self.images

    result = evaluate_reconstruction(Perfect(), Pictures(3), **CPU_ONLY)
    assert result["psnr"] == 100.0
    assert result["ssim"] == pytest.approx(1.0)


def test_continuous_tokens() -> None:
    class Continuous(MeanTokenizer):
        continuous, codebook_size = True, None

        def encode(self, images: Tensor) -> Tokens:
            return Tokens(latents=nn.functional.avg_pool2d(images, 4).flatten(2).transpose(1, 2))

        def decode(self, tokens: Tokens, **options) -> Tensor:
            return nn.functional.interpolate(tokens.latents.transpose(1, 2).unflatten(2, (4, 4)), scale_factor=4)

    result = evaluate_reconstruction(Continuous(), Pictures(3), **CPU_ONLY)
    assert result["codebook"] is None
    assert result["left_out"]["codebook"] == "continuous tokens have none"
    assert result["bits_per_pixel"] == 16 * 3 * 32 / SIZE**2


def test_conditional_tokenizers_get_captions() -> None:
    got: list[str] = []

    class Conditional(MeanTokenizer):
        conditional = True

        def decode(self, tokens: Tokens, *, condition: Tensor | None = None, clamp: bool = True) -> Tensor:
            assert condition.shape == (len(tokens), 1)
            return super().decode(tokens)

    def encode_text(captions: list[str]) -> Tensor:
        got.extend(captions)
        return torch.zeros(len(captions), 1)

    options = CPU_ONLY | {"text_encoder": encode_text, "batch_size": 2}
    result = evaluate_reconstruction(Conditional(), Pictures(3, (1,)), **options)
    assert got == ["picture 0", "picture 2"]
    assert result["data"]["caption"] == "{caption}"
    got.clear()
    evaluate_reconstruction(Conditional(), Pictures(3), caption="a {class name} {caption}", **options)
    assert got == ["a even picture 0", "a odd picture 1", "a even picture 2"]


def test_missing_features_fall_back_or_are_left_out(monkeypatch, caplog) -> None:
    class Stand(MeanColour):
        name, metric = "lite0", "fd_lite0"

    options = {"lpips": False, "progress": False}
    monkeypatch.setattr(instruments, "choose_extractor", lambda names, **_: (Stand(), "inception: no weights"))
    with caplog.at_level(logging.WARNING):
        result = evaluate_reconstruction(MeanTokenizer(), Pictures(4), **options)
    assert len(caplog.records) == 1 and "no weights" in caplog.text
    assert "fd_lite0" in result and "fid" not in result
    assert "features lite0 instead of inception" in result["deviations"][0]
    assert "rFID" not in format_table(result) and "rFD-lite0 (not a FID)" in format_table(result)
    caplog.clear()
    assert "fd_lite0" in evaluate_reconstruction(MeanTokenizer(), Pictures(4), protocol="offline-lite0", **options)
    assert "instead of the protocol" not in caplog.text

    monkeypatch.setattr(instruments, "choose_extractor", lambda names, **_: (None, "inception: no; lite0: no"))
    result = evaluate_reconstruction(MeanTokenizer(), Pictures(4), **options)
    assert result["left_out"]["fid"] == "inception: no; lite0: no"
    assert "fid" not in result and "fd_lite0" not in result
    with pytest.raises(CheckpointError, match="inception: no"):
        evaluate_reconstruction(MeanTokenizer(), Pictures(4), features="inception", **options)


def test_one_image_has_no_distance(mean_colour) -> None:
    result = evaluate_reconstruction(MeanTokenizer(), Pictures(1), lpips=False, progress=False)
    assert "fid" not in result
    assert "two images" in result["left_out"]["fid"]


def test_lpips_is_used_where_it_can_be_had(monkeypatch) -> None:
    from vistok.losses import perceptual

    class Distance(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return (x - y).abs().mean(dim=(1, 2, 3))

    images, decoded = by_hand(4)
    monkeypatch.setattr(perceptual.LPIPS, "pretrained", lambda **_: Distance())
    result = evaluate_reconstruction(MeanTokenizer(), Pictures(4), **CPU_ONLY | {"lpips": True})
    assert result["lpips"] == pytest.approx(float((images - decoded).abs().mean()), rel=1e-5)

    def missing(**_):
        raise CheckpointError("no VGG16 here")

    monkeypatch.setenv("VISTOK_OFFLINE", "1")
    monkeypatch.setattr(perceptual.LPIPS, "pretrained", missing)
    result = evaluate_reconstruction(MeanTokenizer(), Pictures(4), **CPU_ONLY | {"lpips": True})
    assert result["lpips"] is None
    assert result["left_out"]["lpips"] == "no VGG16 here"


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"limit": 0}, ConfigError, "limit is 1 or more, got 0"),
        ({"batch_size": 0}, ConfigError, "batch_size"),
        ({"features": "clop"}, ConfigError, "features is one of"),
        ({"protocol": "titk"}, ConfigError, "did you mean titok"),
        ({"protocol": Protocol(name="odd", crop="middle")}, DataError, "middle"),
        ({"length": 17}, VistokError, "1 to 16 tokens, got length=17"),
        ({"length": 0}, VistokError, "length=0"),
    ],
)
def test_refuses_options(options: dict, error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        evaluate_reconstruction(MeanTokenizer(), Pictures(2), **CPU_ONLY | options)


def test_refuses_tokenizers_and_sources() -> None:
    with pytest.raises(DataError, match="is empty"):
        evaluate_reconstruction(MeanTokenizer(), Pictures(0), **CPU_ONLY)
    fixed = MeanTokenizer()
    fixed.ordered = False
    with pytest.raises(VistokError, match="no order of tokens"):
        evaluate_reconstruction(fixed, Pictures(2), length=3, **CPU_ONLY)

    class Broken(MeanTokenizer):
        def decode(self, tokens: Tokens, **options) -> Tensor:
            return super().decode(tokens) * math.nan

    with pytest.raises(VistokError, match="mean decodes NaN"):
        evaluate_reconstruction(Broken(), Pictures(2), **CPU_ONLY)


def test_result_file(tmp_path) -> None:
    result = evaluate_reconstruction(MeanTokenizer(), Pictures(3), **CPU_ONLY)
    path = tmp_path / "new" / "result.json"
    save_result(result, path)
    assert json.loads(path.read_text()) == result
    with pytest.raises(VistokError, match="JSON"):
        save_result(result | {"psnr": math.inf}, path)
    assert json.loads(path.read_text()) == result
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]


def test_table() -> None:
    result = evaluate_reconstruction(MeanTokenizer(), Pictures(3), **CPU_ONLY)
    table = format_table(result)
    spread = result["confidence"]["psnr"]["std"]
    assert f"PSNR               {result['psnr']:.4g} +- {spread:.2g} dB" in table
    assert "dead codes" in table and "perplexity" in table
    assert "pictures:, 3 of 3 images" in table
    assert "left out: lpips: not asked for" in table
