"""Blocks of convolutional codecs: residual blocks with group norm, and stacks of them down and up.

Every convolution pads so that its output keeps the size of its input.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    """Norm, SiLU, 3x3, norm, SiLU, 3x3 without biases, plus a shortcut.

    Where the number of channels changes, the published MaskGIT-VQGAN weights were trained with a
    1x1 convolution of the *branch* added to the branch, and without the block's input; this is
    that block.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        changes = in_channels != out_channels
        self.shortcut = nn.Conv2d(out_channels, out_channels, 1, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H, W]."""
        # One expression, so that each map is freed when the next is there: they are the largest tensors in sight.
        branch = self.conv2(_silu(self.norm2(self.conv1(_silu(self.norm1(x))))))
        return _add(branch, x) if self.shortcut is None else _add(self.shortcut(branch), branch)


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


class ConvEncoder(_Stack):
    """Images to a map of features, halving the size between levels by average pooling.

    Args:
        base_channels: channels of the first level.
        multipliers: channels of each level as multiples of ``base_channels``.
        num_blocks: residual blocks a level.
        out_channels: channels of the map.
    """

    def __init__(self, base_channels: int, multipliers: Sequence[int], num_blocks: int, out_channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, base_channels, 3, padding=1, bias=False)
        widths = [base_channels * multiplier for multiplier in multipliers]
        self.down = nn.ModuleList(
            _blocks(before, width, num_blocks) for before, width in zip([base_channels, *widths], widths, strict=False)
        )
        self.mid = _blocks(widths[-1], widths[-1], num_blocks)
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, C, H / 2^(levels - 1), W / 2^(levels - 1)]."""
        x = self.conv_in(_channels_last(images))
        for level, blocks in enumerate(self.down):
            if level:
                x = F.avg_pool2d(x, 2)
            for block in blocks:
                x = self._run(block, x)
        for block in self.mid:
            x = self._run(block, x)
        return self.conv_out(_silu(self.norm_out(x)))


class ConvDecoder(_Stack):
    """A map of features to images, doubling the size between levels by repetition and a 3x3 convolution.

    ``up[0]`` is the level of full size, as in the encoder; levels are applied from the last to the first.
    """

    def __init__(self, base_channels: int, multipliers: Sequence[int], num_blocks: int, in_channels: int) -> None:
        super().__init__()
        widths = [base_channels * multiplier for multiplier in multipliers]
        self.conv_in = nn.Conv2d(in_channels, widths[-1], 3, padding=1)
        self.mid = _blocks(widths[-1], widths[-1], num_blocks)
        self.up = nn.ModuleList(
            _blocks(before, width, num_blocks) for before, width in zip([*widths[1:], widths[-1]], widths, strict=True)
        )
        self.upsample = nn.ModuleList(UpsampleConv(width) for width in widths[1:])
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, 3, h * 2^(levels - 1), w * 2^(levels - 1)]."""
        x = self.conv_in(_channels_last(x))
        for block in self.mid:
            x = self._run(block, x)
        for level in reversed(range(len(self.up))):
            for block in self.up[level]:
                x = self._run(block, x)
            if level:
                x = self.upsample[level - 1](x)
        return self.conv_out(_silu(self.norm_out(x))).contiguous()


def _channels_last(x: Tensor) -> Tensor:
    """The layout in which a CPU convolves without reordering, unless gradients are recorded: their passes are slower in it."""
    if x.device.type != "cpu" or torch.is_grad_enabled():
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


def _blocks(in_channels: int, out_channels: int, count: int) -> nn.ModuleList:
    return nn.ModuleList(ConvResBlock(in_channels if i == 0 else out_channels, out_channels) for i in range(count))
