"""Pixel metrics, one value an image: PSNR, SSIM and MS-SSIM.

Both are computed in double precision: in fp32, and still more in the TF32 of newer GPUs, the
variances of flat regions drown in rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.errors import VistokError

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2
_SCALE_POWERS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_SIDE = _WINDOW * 2 ** (len(_SCALE_POWERS) - 1)
_TOLERANCE = 1e-3  # how far outside [0, 1] rounding may put a value


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, over all pixels and channels of an image.

    -10 log10(mean squared error), for a peak of 1.

    Args:
        x, y: float images in [0, 1], [B, C, H, W], of the same shape; the order does not matter.
    Returns:
        float64 [B] (float32 on devices that have no more), from 0; infinite for equal images.
        Higher is better.
    Raises:
        VistokError: different or wrong shapes, not floats, NaN, or values outside [0, 1].
    """
    x, y = _checked(x, y)
    return -10.0 * torch.log10((x - y).square().mean(dim=(1, 2, 3)))


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004): the mean over positions and colour channels.

    The original variant: a Gaussian window of 11 x 11 pixels and sigma 1.5, variances divided by n,
    K1 = 0.01, K2 = 0.03, data range 1, and only windows that lie inside the image. The same as
    scikit-image's ``structural_similarity(gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=1, channel_axis=0)``.

    Args:
        x, y: float images in [0, 1], [B, C, H, W], of the same shape; the order does not matter.
    Returns:
        float64 [B] (float32 on devices that have no more), -1 to 1; 1 for equal images. Higher is better.
    Raises:
        VistokError: as ``psnr``, or sides below 11 pixels.
    """
    x, y = _checked(x, y)
    height, width = x.shape[2:]
    if min(height, width) < _WINDOW:
        raise VistokError(f"ssim takes images of {_WINDOW} x {_WINDOW} pixels or more, got {height} x {width}")
    luminance, structure = _similarity(x, y)
    return (luminance * structure).mean(dim=(1, 2, 3))


def ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """SSIM over five scales (Wang, Simoncelli and Bovik 2003), each half the size of the one before (2 x 2 means).

    The structure terms of four scales and the whole of the fifth, to the powers 0.0448, 0.2856, 0.3001, 0.2363 and
    0.1333, of each colour channel; means over channels. Negative terms count as 0.

    Args:
        x, y: float images in [0, 1], [B, C, H, W], of the same shape; sides of 176 pixels or more.
    Returns:
        As ``ssim``, from 0.
    Raises:
        VistokError: as ``psnr``, or sides below 176 pixels.
    """
    x, y = _checked(x, y)
    if min(x.shape[2:]) < MS_SSIM_SIDE:
        raise VistokError(
            f"ms_ssim takes images of {MS_SSIM_SIDE} pixels a side or more, got {x.shape[2]} x {x.shape[3]}"
        )
    product = torch.ones(x.shape[:2], dtype=x.dtype, device=x.device)
    for scale, power in enumerate(_SCALE_POWERS):
        luminance, structure = _similarity(x, y)
        last = scale == len(_SCALE_POWERS) - 1
        value = (luminance * structure if last else structure).mean(dim=(2, 3))
        product = product * value.clamp_min(0.0) ** power
        if not last:
            x, y = (F.avg_pool2d(images, 2) for images in (x, y))
    return product.mean(dim=1)


def _similarity(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance and structure at every place of a window inside the image, [B, C, H - 10, W - 10]."""
    height, width = x.shape[2:]
    rows, columns = _window(height, like=x), _window(width, like=x).T

    def average(values: Tensor) -> Tensor:
        return rows @ values @ columns  # [B, C, H - 10, W - 10]

    mean_x, mean_y = average(x), average(y)
    var_x = average(x * x) - mean_x * mean_x
    var_y = average(y * y) - mean_y * mean_y
    covariance = average(x * y) - mean_x * mean_y
    luminance = (2.0 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
    return luminance, (2.0 * covariance + _C2) / (var_x + var_y + _C2)


def _window(size: int, *, like: Tensor) -> Tensor:
    """The Gaussian window at every place inside ``size`` pixels, as a matrix [size - 10, size].

    Two products with such matrices are quicker than double-precision convolution, on CPUs and GPUs.
    """
    offsets = torch.arange(_WINDOW, device=like.device, dtype=like.dtype) - _WINDOW // 2
    weights = torch.exp(-offsets.square() / (2.0 * _SIGMA**2))
    weights = weights / weights.sum()
    matrix = like.new_zeros(size - _WINDOW + 1, size)
    for start, weight in enumerate(weights):
        matrix.diagonal(start).copy_(weight.expand(matrix.shape[0]))
    return matrix


def _checked(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    for images in (x, y):
        if not isinstance(images, Tensor) or not images.is_floating_point() or images.ndim != 4 or not images.numel():
            got = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise VistokError(f"pixel metrics take float images in [0, 1], [B, C, H, W], got {got}")
    if x.shape != y.shape:
        raise VistokError(f"pixel metrics compare images of the same shape, got {list(x.shape)} and {list(y.shape)}")
    if x.device != y.device:
        raise VistokError(f"pixel metrics compare images on one device, got {x.device} and {y.device}")
    for images in (x, y):
        low, high = torch.stack(images.aminmax()).tolist()
        if not (low >= -_TOLERANCE and high <= 1.0 + _TOLERANCE):  # also catches NaN
            raise VistokError(
                f"pixel metrics take images in [0, 1], got values from {low:.4g} to {high:.4g}; clamp first"
            )
    dtype = torch.float32 if x.device.type == "mps" else torch.float64
    return x.to(dtype), y.to(dtype)
