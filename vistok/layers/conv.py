"""Blocks of convolutional codecs: residual blocks with group norm, and stacks of them down and up.

Convolutions pad so that the output keeps the size of the input, unless they are there to change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_NUM_GROUPS = 32
_NORM_EPS = 1e-6


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with 32 groups and the eps of the VQGAN line of codecs."""
    return nn.GroupNorm(_NUM_GROUPS, channels, eps=_NORM_EPS)


class ConvResBlock(nn.Module):
    """Norm, SiLU, 3x3, norm, SiLU, 3x3, plus a shortcut: a 1x1 convolution where the number of channels changes.

    Args:
        in_channels, out_channels: C and C'.
        bias: of its convolutions.
        shortcut: what the 1x1 convolution sees. ``input``, as everywhere; or ``branch``: the published
            MaskGIT-VQGAN weights were trained with the convolved *branch* added to the branch, and without the
            block's input.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bias: bool = False,
        shortcut: Literal["branch", "input"] = "branch",
    ) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)
        self.norm2 = group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=bias)
        self.shortcut_sees = shortcut
        seen = in_channels if shortcut == "input" else out_channels
        self.shortcut = nn.Conv2d(seen, out_channels, 1, bias=bias) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H, W]."""
        # One expression, so that each map is freed when the next is there: they are the largest tensors in sight.
        branch = self.conv2(_silu(self.norm2(self.conv1(_silu(self.norm1(x))))))
        if self.shortcut is None:
            return _add(branch, x)
        return _add(self.shortcut(x if self.shortcut_sees == "input" else branch), branch)


class ConvAttention(nn.Module):
    """x += projection(attention(norm(x))) with one head over all places; every projection is a 1x1 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        normed = self.norm(x)
        query, key, value = (
            layer(normed).flatten(2).transpose(1, 2)[:, None] for layer in (self.query, self.key, self.value)
        )  # [B, 1, H*W, C]
        out = F.scaled_dot_product_attention(query, key, value)[:, 0].transpose(1, 2).reshape(x.shape)
        return x + self.proj(out)


class AdaptiveGroupNorm(nn.Module):
    """Group norm whose scale and shift are learned from the spread and the mean of a map's channels.

    Published weights hold the scale itself, not its difference from one.

    Args:
        channels: C of what is normalised.
        map_channels: Z of the map.
    """

    def __init__(self, channels: int, map_channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_NUM_GROUPS, channels, eps=_NORM_EPS, affine=False)
        self.scale = nn.Linear(map_channels, channels)
        self.shift = nn.Linear(map_channels, channels)

    @staticmethod
    def statistics(z: Tensor) -> tuple[Tensor, Tensor]:
        """A map [B, Z, h, w] -> spread (unbiased standard deviation) and mean over its places, each [B, Z]."""
        flat = z.flatten(2)
        return (flat.var(dim=-1) + _NORM_EPS).sqrt(), flat.mean(dim=-1)

    def forward(self, x: Tensor, spread: Tensor, mean: Tensor) -> Tensor:
        """[B, C, H, W] and ``statistics`` of the map -> [B, C, H, W]."""
        return self.norm(x) * self.scale(spread)[..., None, None] + self.shift(mean)[..., None, None]


class DownsampleConv(nn.Conv2d):
    """3x3 with stride 2; the zeros that it needs are added on the right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H/2, W/2]."""
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class DepthToSpaceConv(nn.Conv2d):
    """3x3 to four times the channels, which become the four pixels of a place.

    Channel (2 dy + dx) * C + c is pixel (dy, dx) of channel c: not the order of ``torch.pixel_shuffle``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 4 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, 2H, 2W]."""
        batch, channels, height, width = x.shape
        parts = super().forward(x).reshape(batch, 2, 2, channels, height, width)
        return parts.permute(0, 3, 4, 1, 5, 2).reshape(batch, channels, 2 * height, 2 * width)


class UpsampleConv(nn.Conv2d):
    """Repeat every position 2x2, then convolve 3x3: computed as the one transposed convolution that these two are.

    That takes 4/9 of the multiplications, and the enlarged map is never held.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, 2H, 2W]."""
        # Along an axis, taps (a, b, c) on repeated values are taps (c, b + c, a + b, a) between the values.
        spread = self.weight.new_tensor([[0, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 0]])
        kernel = self.weight.flatten(2) @ torch.kron(spread, spread)  # [C', C, 16]
        return F.conv_transpose2d(x, kernel.unflatten(2, (4, 4)).transpose(0, 1), self.bias, stride=2, padding=1)


class _Stack(nn.Module):
    """Runs blocks one after the other, recomputing them in the backward pass where that is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.gradient_checkpointing = False

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.gradient_checkpointing and self.training:
            return checkpoint(block, x, use_reentrant=False)
        return block(x)

    def _run_level(self, blocks: nn.ModuleList, attention: nn.ModuleList | tuple[()], x: Tensor) -> Tensor:
        """Residual blocks, each with its attention behind it where there is some."""
        for index, block in enumerate(blocks):
            x = self._run(block, x)
            if len(attention):
                x = self._run(attention[index], x)
        return x

    def _run_mid(self, blocks: nn.ModuleList, attention: nn.Module | None, x: Tensor) -> Tensor:
        """Residual blocks, the first one with attention behind it where there is some."""
        for index, block in enumerate(blocks):
            x = self._run(block, x)
            if attention is not None and index == 0:
                x = self._run(attention, x)
        return x


class ConvEncoder(_Stack):
    """Images to a map of features, halving the size between levels.

    The defaults are MaskGIT-VQGAN's; with ``bias``, ``shortcut="input"``, ``downsample="conv"`` and
    ``out_kernel=3`` it is the encoder of VQGAN and latent diffusion (arXiv:2012.09841, arXiv:2112.10752).

    Args:
        base_channels: channels of the first level.
        multipliers: channels of each level as multiples of ``base_channels``.
        num_blocks: residual blocks a level.
        out_channels: channels of the map.
        num_mid_blocks: residual blocks after the last level; None for ``num_blocks``.
        bias, shortcut: of the residual blocks, see ``ConvResBlock``; ``bias`` is the first convolution's too.
        downsample: ``mean`` of 2x2 pixels, or a learned ``conv``.
        attention: attend after every residual block of the last level and after the first one behind it.
        mid_attention: whether that last attention is there; None for as ``attention`` says.
        out_kernel: size of the last convolution.
    """

    def __init__(
        self,
        base_channels: int,
        multipliers: Sequence[int],
        num_blocks: int,
        out_channels: int,
        *,
        num_mid_blocks: int | None = None,
        bias: bool = False,
        shortcut: Literal["branch", "input"] = "branch",
        downsample: Literal["mean", "conv"] = "mean",
        attention: bool = False,
        mid_attention: bool | None = None,
        out_kernel: int = 1,
    ) -> None:
        super().__init__()
        widths = [base_channels * multiplier for multiplier in multipliers]
        pairs = zip([base_channels, *widths], widths, strict=False)
        options = {"bias": bias, "shortcut": shortcut}
        last = widths[-1]
        self.conv_in = nn.Conv2d(3, base_channels, 3, padding=1, bias=bias)
        self.down = nn.ModuleList(_blocks(before, width, num_blocks, **options) for before, width in pairs)
        self.downsample = nn.ModuleList(DownsampleConv(width) for width in widths[:-1] if downsample == "conv")
        self.attention = nn.ModuleList(ConvAttention(last) for _ in range(num_blocks if attention else 0))
        self.mid = _blocks(last, last, num_blocks if num_mid_blocks is None else num_mid_blocks, **options)
        attends = attention if mid_attention is None else mid_attention
        self.mid_attention = ConvAttention(last) if attends else None
        self.norm_out = group_norm(last)
        self.conv_out = nn.Conv2d(last, out_channels, out_kernel, padding=out_kernel // 2)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, C, H / 2^(levels - 1), W / 2^(levels - 1)]."""
        x = self.conv_in(_channels_last(images, channels=self.conv_in.out_channels, pixels=images[0, 0].numel()))
        for level, blocks in enumerate(self.down):
            if level:
                x = self.downsample[level - 1](x) if self.downsample else F.avg_pool2d(x, 2)
            x = self._run_level(blocks, self.attention if level == len(self.down) - 1 else (), x)
        x = self._run_mid(self.mid, self.mid_attention, x)
        return self.conv_out(_silu(self.norm_out(x)))


class ConvDecoder(_Stack):
    """A map of features to images, doubling the size between levels.

    ``up[0]`` is the level of full size, as in the encoder; levels are applied from the last to the first.
    The defaults are MaskGIT-VQGAN's.

    Args:
        base_channels, multipliers: as in ``ConvEncoder``.
        num_blocks: residual blocks a level.
        in_channels: channels of the map.
        num_mid_blocks, bias, shortcut: as in ``ConvEncoder``; the other convolutions always have a bias.
        upsample: ``nearest``: repetition and a 3x3 convolution; or ``depth_to_space``.
        attention: attend after every residual block of the smallest level and after the first one before it.
        mid_attention: whether that first attention is there; None for as ``attention`` says.
        adaptive_norm: begin every level with an ``AdaptiveGroupNorm`` that the map itself steers.
    """

    def __init__(
        self,
        base_channels: int,
        multipliers: Sequence[int],
        num_blocks: int,
        in_channels: int,
        *,
        num_mid_blocks: int | None = None,
        bias: bool = False,
        shortcut: Literal["branch", "input"] = "branch",
        upsample: Literal["nearest", "depth_to_space"] = "nearest",
        attention: bool = False,
        mid_attention: bool | None = None,
        adaptive_norm: bool = False,
    ) -> None:
        super().__init__()
        widths = [base_channels * multiplier for multiplier in multipliers]
        before = [*widths[1:], widths[-1]]
        options = {"bias": bias, "shortcut": shortcut}
        last = widths[-1]
        upsampler = {"nearest": UpsampleConv, "depth_to_space": DepthToSpaceConv}[upsample]
        self.conv_in = nn.Conv2d(in_channels, last, 3, padding=1)
        self.mid = _blocks(last, last, num_blocks if num_mid_blocks is None else num_mid_blocks, **options)
        attends = attention if mid_attention is None else mid_attention
        self.mid_attention = ConvAttention(last) if attends else None
        self.up = nn.ModuleList(
            _blocks(wide, width, num_blocks, **options) for wide, width in zip(before, widths, strict=True)
        )
        self.attention = nn.ModuleList(ConvAttention(last) for _ in range(num_blocks if attention else 0))
        self.adaptive = nn.ModuleList(AdaptiveGroupNorm(width, in_channels) for width in before if adaptive_norm)
        self.upsample = nn.ModuleList(upsampler(width) for width in widths[1:])
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, 3, h * 2^(levels - 1), w * 2^(levels - 1)]."""
        statistics = AdaptiveGroupNorm.statistics(x) if self.adaptive else ()
        pixels = x[0, 0].numel() * 4 ** len(self.upsample)
        x = self.conv_in(_channels_last(x, channels=self.norm_out.num_channels, pixels=pixels))
        x = self._run_mid(self.mid, self.mid_attention, x)
        for level in reversed(range(len(self.up))):
            if self.adaptive:
                x = self.adaptive[level](x, *statistics)
            x = self._run_level(self.up[level], self.attention if level == len(self.up) - 1 else (), x)
            if level:
                x = self.upsample[level - 1](x)
        return self.conv_out(_silu(self.norm_out(x))).contiguous()


def _channels_last(x: Tensor, *, channels: int, pixels: int) -> Tensor:
    """The layout in which a CPU convolves without reordering, unless gradients are recorded: their passes are slower in it.

    torch's group norm sums squares one after the other in this layout. Measured on maps whose mean is twice their deviation: with 4
    channels a group and 256x256 pixels it is off by 3e-5, and by 6e-4 with one; so narrow or larger stacks (``channels`` and ``pixels`` of
    the map of full size) keep theirs, where it is off by 6e-7.
    """
    exact_enough = channels >= 4 * _NUM_GROUPS and pixels <= 256**2
    if x.device.type != "cpu" or torch.is_grad_enabled() or not exact_enough:
        return x
    return x.clone(
        memory_format=torch.channels_last
    )  # contiguous() may keep a batch of one, in strides that hide its layout


def _silu(x: Tensor) -> Tensor:
    """SiLU of a tensor that nobody else holds: in place unless gradients are recorded."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def _add(x: Tensor, y: Tensor) -> Tensor:
    """x + y, where nobody else holds x: in place unless gradients are recorded."""
    return x + y if torch.is_grad_enabled() else x.add_(y)


def _blocks(in_channels: int, out_channels: int, count: int, **options: Any) -> nn.ModuleList:
    return nn.ModuleList(
        ConvResBlock(in_channels if index == 0 else out_channels, out_channels, **options) for index in range(count)
    )
