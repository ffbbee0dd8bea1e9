"""Transformers in which queries read a map or a sequence, for tokenizers between a convolutional encoder and decoder.

The layers are those of DETR (arXiv:2005.12872), pre-norm: positions are added to queries and keys of
every attention, not to values, and what is read is not normalised. ``MapToTokens`` reads a map into a
sequence, ``TokensToMap`` a sequence into a map (GigaTok, arXiv:2504.08736, section 3); ``MapTransformer``
is their counterpart for tokenizers that stay on the grid.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vistok.errors import ConfigError
from vistok.layers.transformer import Mlp

QueryInit = Literal["pyramid", "mean", "learned"]


class ReadAttention(nn.Module):
    """Multi-head attention whose queries, keys and values come from different tensors.

    Args:
        width: D, a multiple of ``num_heads``.
        num_heads: number of heads.
        qk_norm: normalise queries and keys head by head, with learned terms; projections are then three layers
            instead of one, as published weights have it.
    """

    def __init__(self, width: int, num_heads: int, *, qk_norm: bool = False) -> None:
        super().__init__()
        if width % num_heads:
            raise ConfigError(f"the width {width} is not a multiple of the {num_heads} heads")
        self.num_heads = num_heads
        self.qk_norm = qk_norm
        if qk_norm:
            self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
            self.query_norm = nn.LayerNorm(width // num_heads)
            self.key_norm = nn.LayerNorm(width // num_heads)
        else:
            self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[B, Q, D], [B, K, D], [B, K, D] -> [B, Q, D]."""
        if self.qk_norm:
            heads = self.query(query), self.key(key), self.value(value)
        elif query is key:
            width = query.shape[-1]
            weight, bias = self.qkv.weight, self.qkv.bias
            heads = *F.linear(query, weight[: 2 * width], bias[: 2 * width]).chunk(2, dim=-1), self._part(value, 2)
        else:
            heads = self._part(query, 0), self._part(key, 1), self._part(value, 2)
        query, key, value = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in heads)
        if self.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        out = F.scaled_dot_product_attention(query, key, value)  # [B, heads, Q, D / heads]
        return self.proj(out.transpose(1, 2).flatten(2))

    def _part(self, x: Tensor, index: int) -> Tensor:
        """One of the packed projections: 0 of queries, 1 of keys, 2 of values."""
        rows = slice(index * x.shape[-1], (index + 1) * x.shape[-1])
        return F.linear(x, self.qkv.weight[rows], self.qkv.bias[rows])


class ReadBlock(nn.Module):
    """Self-attention, attention to what is read (if anything is), MLP; each pre-norm and added to the stream."""

    def __init__(self, width: int, num_heads: int, *, reads: bool = True, qk_norm: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = ReadAttention(width, num_heads, qk_norm=qk_norm)
        if reads:
            self.norm_read = nn.LayerNorm(width)
            self.read = ReadAttention(width, num_heads, qk_norm=qk_norm)
        self.reads = reads
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)

    def forward(
        self, x: Tensor, position: Tensor | None = None, memory: Tensor | None = None, memory_key: Tensor | None = None
    ) -> Tensor:
        """[B, Q, D] -> [B, Q, D].

        Args:
            x: the stream.
            position: [1, Q, D], added to queries and keys of this stream; None for nothing.
            memory: [B, K, D], the values that are read.
            memory_key: [B, K, D], the same with positions.
        """
        normed = self.norm1(x)
        placed = normed if position is None else normed + position
        x = x + self.attn(placed, placed, normed)
        if self.reads:
            normed = self.norm_read(x)
            x = x + self.read(normed if position is None else normed + position, memory_key, memory)
        return x + self.mlp(self.norm2(x))


class _Stack(nn.Module):
    """Blocks between a norm and a linear layer that bring a width in, and a norm behind.

    Args:
        in_channels: C of what comes in.
        width, depth, num_heads: the transformer's size.
        reads, qk_norm: of the blocks.
    """

    def __init__(
        self, in_channels: int, *, width: int, depth: int, num_heads: int, reads: bool = True, qk_norm: bool = False
    ) -> None:
        super().__init__()
        self.norm_pre = nn.LayerNorm(in_channels)
        self.embed = nn.Linear(in_channels, width)
        self.blocks = nn.ModuleList(ReadBlock(width, num_heads, reads=reads, qk_norm=qk_norm) for _ in range(depth))
        self.norm_post = nn.LayerNorm(width)
        self.gradient_checkpointing = False

    def _run(self, x: Tensor, first: int, last: int, *inputs: Tensor | None) -> Tensor:
        """Blocks ``first`` to ``last`` - 1; ``inputs`` as in ``ReadBlock`` behind the stream."""
        for block in self.blocks[first:last]:
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, *inputs, use_reentrant=False)
            else:
                x = block(x, *inputs)
        return x


class MapToTokens(_Stack):
    """A map is read into N tokens.

    Args:
        in_channels, out_channels: of the map, and of a token.
        grid_size: height and width of the map.
        num_tokens: N.
        query_init: what the queries start from: ``pyramid``: means of ever smaller parts of the map (1, 1, 2, 4,
            ... N/2 of them); ``mean``: that of the whole map; or ``learned`` vectors.
        width, depth, num_heads, qk_norm: the transformer's size and kind.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        grid_size: int,
        num_tokens: int,
        query_init: QueryInit = "pyramid",
        width: int,
        depth: int,
        num_heads: int,
        qk_norm: bool = False,
    ) -> None:
        super().__init__(in_channels, width=width, depth=depth, num_heads=num_heads, qk_norm=qk_norm)
        if query_init == "pyramid":
            check_pyramid(grid_size, num_tokens)
        self.grid_size, self.num_tokens, self.query_init = grid_size, num_tokens, query_init
        self.pos_embed = nn.Parameter(torch.empty(1, grid_size**2, width))
        self.token_pos_embed = nn.Parameter(torch.empty(1, num_tokens, width))
        if query_init == "learned":
            self.queries = nn.Parameter(torch.empty(1, num_tokens, width))
        else:
            self.to_queries = nn.Linear(width, width)
        self.to_out = nn.Linear(width, out_channels)

    def features(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> normalised features [B, N, D]."""
        memory = self.embed(self.norm_pre(x.flatten(2).transpose(1, 2)))  # [B, h*w, D]
        inputs = self.token_pos_embed, memory, memory + self.pos_embed
        return self.norm_post(self._run(self._queries(memory), 0, len(self.blocks), *inputs))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, N, out_channels]."""
        return self.to_out(self.features(x))

    def _queries(self, memory: Tensor) -> Tensor:
        if self.query_init == "learned":
            return self.queries.expand(len(memory), -1, -1)
        if self.query_init == "mean":
            return self.to_queries(memory.mean(dim=1, keepdim=True)).expand(-1, self.num_tokens, -1)
        grid = memory.transpose(1, 2).unflatten(2, (self.grid_size, self.grid_size))
        means = [F.adaptive_avg_pool2d(grid, cells).flatten(2) for cells in pyramid_cells(self.num_tokens)]
        return self.to_queries(torch.cat(means, dim=2).transpose(1, 2))


class TokensToMap(_Stack):
    """N tokens (or a prefix of them) are read into a map.

    All places of the map start from the first token.

    Args:
        in_channels, out_channels: of a token, and of the map.
        grid_size, num_tokens: of the map, and N.
        feature_depth: after how many blocks ``features`` are taken.
        width, depth, num_heads, qk_norm: the transformer's size and kind.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        grid_size: int,
        num_tokens: int,
        feature_depth: int,
        width: int,
        depth: int,
        num_heads: int,
        qk_norm: bool = False,
    ) -> None:
        super().__init__(in_channels, width=width, depth=depth, num_heads=num_heads, qk_norm=qk_norm)
        self.grid_size, self.feature_depth = grid_size, feature_depth
        self.pos_embed = nn.Parameter(torch.empty(1, grid_size**2, width))
        self.token_pos_embed = nn.Parameter(torch.empty(1, num_tokens, width))
        self.conv_out = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """[B, L <= N, C] -> the map [B, out_channels, h, w], and inner features [B, h*w, D]."""
        queries, inputs = self._start(tokens)
        inner = self._run(queries, 0, self.feature_depth, *inputs)
        out = self._run(inner, self.feature_depth, len(self.blocks), *inputs)
        return self.conv_out(_to_map(self.norm_post(out))), inner

    def features(self, tokens: Tensor) -> Tensor:
        """The inner features [B, h*w, D] alone; later blocks are not computed."""
        queries, inputs = self._start(tokens)
        return self._run(queries, 0, self.feature_depth, *inputs)

    def _start(self, tokens: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        memory = self.embed(self.norm_pre(tokens))  # [B, L, D]
        queries = memory[:, :1].expand(-1, self.grid_size**2, -1)
        return queries, (self.pos_embed, memory, memory + self.token_pos_embed[:, : tokens.shape[1]])


class MapTransformer(_Stack):
    """Places of a map to a map of the same size.

    Args:
        in_channels, out_channels: of the maps.
        grid_size: height and width.
        kernel: of the last convolution: 1 or 3.
        layers: ``reading``: each block reads its own input besides attending to it, with positions everywhere; or
            ``plain``: positions are added once, and blocks are attention and MLP.
        feature_depth: after how many blocks inner features are taken; None for behind the last one and its norm.
        width, depth, num_heads, qk_norm: the transformer's size and kind.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        grid_size: int,
        kernel: int,
        layers: Literal["reading", "plain"],
        feature_depth: int | None = None,
        width: int,
        depth: int,
        num_heads: int,
        qk_norm: bool = False,
    ) -> None:
        reads = layers == "reading"
        super().__init__(in_channels, width=width, depth=depth, num_heads=num_heads, reads=reads, qk_norm=qk_norm)
        self.feature_depth, self.reads = feature_depth, reads
        self.pos_embed = nn.Parameter(torch.empty(1, grid_size**2, width))
        self.conv_out = nn.Conv2d(width, out_channels, kernel, padding=kernel // 2)

    def forward(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """[B, h*w, C] -> the map [B, out_channels, h, w], and inner features [B, h*w, D]."""
        inner = x = self._through(self._start(places), 0, self.feature_depth)
        if self.feature_depth is not None:
            x = self._through(x, self.feature_depth, None)
        x = self.norm_post(x)
        return self.conv_out(_to_map(x)), x if self.feature_depth is None else inner

    def features(self, places: Tensor) -> Tensor:
        """The inner features [B, h*w, D] alone."""
        x = self._through(self._start(places), 0, self.feature_depth)
        return self.norm_post(x) if self.feature_depth is None else x

    def _start(self, places: Tensor) -> Tensor:
        x = self.embed(self.norm_pre(places))
        return x if self.reads else x + self.pos_embed

    def _through(self, x: Tensor, first: int, last: int | None) -> Tensor:
        for index in range(len(self.blocks))[first:last]:
            inputs = (self.pos_embed, x, x + self.pos_embed) if self.reads else ()
            x = self._run(x, index, index + 1, *inputs)
        return x


def pyramid_cells(num_tokens: int) -> list[tuple[int, int]]:
    """Rows and columns into which a map is cut for each group of ``pyramid`` queries: 1, 1, 2, 4, ... N/2 cells."""
    levels = [max(group - 1, 0) for group in range(num_tokens.bit_length())]
    return [(2 ** (level // 2), 2 ** ((level + 1) // 2)) for level in levels]


def check_pyramid(grid_size: int, num_tokens: int) -> None:
    """Raise a ``ConfigError`` unless ``pyramid`` queries can be made."""
    if num_tokens < 1 or num_tokens & (num_tokens - 1):
        raise ConfigError(f"pyramid queries are a power of two in number, got {num_tokens}")
    if any(grid_size % cells for pair in pyramid_cells(num_tokens) for cells in pair):
        raise ConfigError(f"a {grid_size}x{grid_size} map cannot be cut into the cells of {num_tokens} pyramid queries")


def _to_map(x: Tensor) -> Tensor:
    """[B, h*w, D] row-major -> [B, D, h, w]."""
    side = math.isqrt(x.shape[1])
    return x.transpose(1, 2).unflatten(2, (side, side))
