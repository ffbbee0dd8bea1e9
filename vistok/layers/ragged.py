"""Sequences of patches and registers of different lengths in one computation, without padding.

Identical registers without a position stay identical through any number of blocks. So one row may
stand for many of them: the logarithm of their number is added to its attention logits, which is
exactly the softmax over all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_HEAD_MULTIPLE = 8  # head widths that fast attention kernels take


@dataclass(frozen=True)
class Group:
    """Sequences of one length.

    Attributes:
        count: how many sequences.
        registers: rows of each after its patches.
        multiplicity: how many identical registers the last of these rows stands for.
    """

    count: int
    registers: int
    multiplicity: int = 1


@dataclass(frozen=True)
class _Segment:
    """Rows start..stop: those of sequences ``first``..``last``, of the same kind (0 patches, 1 registers)."""

    start: int
    stop: int
    first: int
    last: int
    kind: int


class RaggedLayout:
    """Where the rows of a packed tensor [N, D] belong: first the patches of all sequences, then their registers.

    Patches have the same number in every sequence, so they are one contiguous block; the registers
    follow group by group.

    Args:
        num_patches: P, of every sequence.
        groups: in the order of the sequences.
    """

    def __init__(self, num_patches: int, groups: Sequence[Group]) -> None:
        self.num_patches = num_patches
        self.groups = tuple(groups)
        self.num_sequences = sum(group.count for group in groups)
        self.num_patch_rows = num_patches * self.num_sequences
        self.num_rows = self.num_patch_rows + sum(group.count * group.registers for group in groups)
        segments = [_Segment(0, self.num_patch_rows, 0, self.num_sequences, 0)]
        start, first = self.num_patch_rows, 0
        for group in groups:
            stop, last = start + group.count * group.registers, first + group.count
            segments.append(_Segment(start, stop, first, last, 1))
            start, first = stop, last
        self._segments = tuple(segments)
        # With one modulation for all, where the registers are in their sequences does not matter.
        self._two_segments = (segments[0], _Segment(self.num_patch_rows, self.num_rows, 0, self.num_sequences, 1))

    def modulate(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """x * (1 + scale) + shift for rows [N, D].

        Args:
            x: the rows.
            scale, shift: [M, G, D]; M is 1 or the number of sequences, G is 1, or 2 for patches and registers apart.
        """
        parts = self._parts(x, scale, shift)
        return torch.cat([(x * (1.0 + scale) + shift).flatten(0, 1) for x, scale, shift in parts])

    def gated_sum(self, x: Tensor, gate: Tensor, update: Tensor) -> Tensor:
        """x + gate * update for rows [N, D]; ``gate`` as in ``modulate``."""
        updates = self._parts(update, gate)
        pairs = zip(self._parts(x, gate), updates, strict=True)
        return torch.cat([(x + gate * update).flatten(0, 1) for (x, gate), (update, _) in pairs])

    def _parts(self, x: Tensor, *terms: Tensor) -> list[tuple[Tensor, ...]]:
        """Rows [count, n, D] with the terms [count or 1, 1, D] that belong to them."""
        shared = len(terms[0]) == 1
        out = []
        for segment in self._two_segments if shared else self._segments:
            if segment.start == segment.stop:
                continue
            kind = min(segment.kind, terms[0].shape[1] - 1)
            sequences = slice(None) if shared else slice(segment.first, segment.last)
            count = 1 if shared else segment.last - segment.first
            rows = x[segment.start : segment.stop].unflatten(0, (count, -1))
            out.append((rows, *(term[sequences, kind, None] for term in terms)))
        return out

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> Tensor:
        """Full attention inside each sequence, for rows [N, heads, d] -> [N, heads, d]."""
        patches_out, registers_out = [], []
        first, start = 0, self.num_patch_rows
        for group in self.groups:
            stop = start + group.count * group.registers
            patches = slice(first * self.num_patches, (first + group.count) * self.num_patches)
            q, k, v = (
                torch.cat(
                    [x[part].unflatten(0, (group.count, -1)) for part in (patches, slice(start, stop))], dim=1
                ).transpose(1, 2)  # [count, heads, P + n, d]
                if group.registers
                else x[patches].unflatten(0, (group.count, -1)).transpose(1, 2)
                for x in (query, key, value)
            )
            out = attention_with_multiplicity(q, k, v, group.multiplicity, scale=scale).transpose(1, 2)
            patches_out.append(out[:, : self.num_patches].flatten(0, 1))
            registers_out.append(out[:, self.num_patches :].flatten(0, 1))
            first, start = first + group.count, stop
        return torch.cat(patches_out + registers_out)


def attention_with_multiplicity(
    query: Tensor, key: Tensor, value: Tensor, multiplicity: int, *, scale: float
) -> Tensor:
    """Attention [B, heads, L, d] in which the last key stands for ``multiplicity`` identical ones."""
    if multiplicity == 1:
        return F.scaled_dot_product_attention(query, key, value, scale=scale)
    bias = math.log(multiplicity)
    if query.dtype in (torch.float32, torch.float64):
        mask = query.new_zeros(1, 1, 1, key.shape[2])
        mask[..., -1] = bias
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    # A mask in bf16 would hold log(248) with an error of one part in sixty of the weight. As extra
    # channels, a coarse and two fine parts of it are summed in fp32, and kernels without masks can run.
    width = query.shape[-1]
    extra = width % _HEAD_MULTIPLE or _HEAD_MULTIPLE
    terms, rest = [], bias / scale
    for _ in range(min(3, extra)):
        terms.append(float(torch.tensor(rest).to(query.dtype)))
        rest -= terms[-1]
    key_extra = key.new_zeros(*key.shape[:-1], extra)
    key_extra[..., -1, : len(terms)] = key.new_tensor(terms)
    query_extra = query.new_zeros(extra)
    query_extra[: len(terms)] = 1.0
    out = F.scaled_dot_product_attention(
        torch.cat([query, query_extra.expand(*query.shape[:-1], extra)], dim=-1),
        torch.cat([key, key_extra], dim=-1),
        F.pad(value, (0, extra)),
        scale=scale,
    )
    return out[..., :width]
