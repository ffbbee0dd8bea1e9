"""PSNR and SSIM: against scikit-image, their ranges, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vistok.errors import VistokError
from vistok.metrics import ms_ssim, psnr, ssim

skimage_metrics = pytest.importorskip("skimage.metrics")


def pairs(height: int = 40, width: int = 33) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth, flat, noisy and equal pictures, each with a damaged copy."""
    grid = torch.linspace(0, 1, height)[:, None] * torch.linspace(0.2, 1, width)
    smooth = torch.stack([grid, 1 - grid, grid.square()])
    flat = torch.full_like(smooth, 0.7)
    noise = torch.rand_like(smooth)
    x = torch.stack([smooth, flat, noise, noise])
    damage = torch.tensor([0.05, 0.003, 0.5, 0.0])[:, None, None, None]
    return x, (x + damage * torch.randn_like(x)).clamp(0, 1)


def test_equal_scikit_image() -> None:
    x, y = pairs()
    for ours, a, b in zip(ssim(x, y), x.double().numpy(), y.double().numpy(), strict=True):
        theirs = skimage_metrics.structural_similarity(
            a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=0
        )
        assert float(ours) == pytest.approx(theirs, abs=1e-12)
    for ours, a, b in zip(psnr(x, y)[:3], x.double().numpy(), y.double().numpy(), strict=False):
        assert float(ours) == pytest.approx(skimage_metrics.peak_signal_noise_ratio(a, b, data_range=1), abs=1e-10)


def test_known_values() -> None:
    black, grey = torch.zeros(2, 3, 16, 16), torch.full((2, 3, 16, 16), 0.1)
    torch.testing.assert_close(psnr(black, grey), torch.full((2,), 20.0, dtype=torch.float64), rtol=1e-6, atol=0)
    assert psnr(black, black).tolist() == [math.inf] * 2
    assert psnr(black, torch.ones_like(black)).tolist() == [0.0] * 2
    assert ssim(grey, grey).tolist() == pytest.approx([1.0] * 2, abs=1e-12)


def test_symmetric_and_row_by_row() -> None:
    x, y = pairs()
    for metric in (psnr, ssim):
        values = metric(x, y)
        assert values.shape == (4,)
        torch.testing.assert_close(values, metric(y, x), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(values[1:2], metric(x[1:2], y[1:2]), rtol=1e-12, atol=1e-12)


def test_low_precision_images() -> None:
    x, y = pairs()
    for dtype in (torch.float16, torch.bfloat16):
        low = (x[:1].to(dtype), y[:1].to(dtype))
        assert psnr(*low).dtype == torch.float64
        assert float(ssim(*low)) == pytest.approx(float(ssim(low[0].double(), low[1].double())), abs=1e-12)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_refuses(metric) -> None:
    good = torch.rand(2, 3, 16, 16)
    with pytest.raises(VistokError, match=r"same shape, got \[2, 3, 16, 16\] and \[1, 3, 16, 16\]"):
        metric(good, good[:1])
    with pytest.raises(VistokError, match=r"uint8"):
        metric(good, (good * 255).to(torch.uint8))
    with pytest.raises(VistokError, match=r"\[3, 16, 16\]"):
        metric(good[0], good[0])
    with pytest.raises(VistokError, match="ndarray"):
        metric(good, np.zeros((2, 3, 16, 16)))
    for bad, says in ((math.nan, "nan"), (math.inf, "inf"), (1.5, "clamp first"), (-0.2, "-0.2")):
        damaged = good.clone()
        damaged[1, 2, 3, 4] = bad
        with pytest.raises(VistokError, match=says):
            metric(good, damaged)


def test_ssim_needs_a_window() -> None:
    with pytest.raises(VistokError, match="11 x 11 pixels or more, got 10 x 16"):
        ssim(torch.rand(1, 3, 10, 16), torch.rand(1, 3, 10, 16))


@pytest.mark.parametrize("size", [(176, 180), (256, 192)])
def test_ms_ssim_is_torchmetrics(size: tuple[int, int]) -> None:
    theirs = pytest.importorskip("torchmetrics.functional.image", reason="torchmetrics is not installed")
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.interpolate(torch.rand(2, 3, 9, 9, generator=generator), size=size, mode="bicubic").clamp(
        0, 1
    )
    y = (x + 0.1 * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    expected = theirs.multiscale_structural_similarity_index_measure(
        x.double(), y.double(), data_range=1.0, reduction="none", normalize="relu"
    )
    got = ms_ssim(x, y)
    assert torch.equal(ms_ssim(y, x), got) and torch.allclose(ms_ssim(x, x), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(got, expected.double(), rtol=0, atol=2e-3)  # it pads its windows, and averages otherwise


def test_ms_ssim_by_hand() -> None:
    """Pictures whose scales are all alike: constant against constant has luminance at the last scale only."""
    x, y = torch.full((1, 1, 176, 176), 0.5), torch.full((1, 1, 176, 176), 0.25)
    luminance = (2 * 0.125 + 1e-4) / (0.25 + 0.0625 + 1e-4)
    assert float(ms_ssim(x, y)) == pytest.approx(luminance**0.1333, rel=1e-9)
    with pytest.raises(VistokError, match="176 pixels a side"):
        ms_ssim(x[..., :175], y[..., :175])
