"""Cached generation as one writes it first, and as the released code of GPT (LlamaGen, GigaTok) and of RAR is built.

Both share the weights of the model that they are made from, and nothing else of it: the benchmark's other side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.generate.gpt import Gpt, GptBlock
from vistok.generate.rar import Rar, RarBlock


class PlainCachedGpt:
    """Keys and values of all positions in full-length buffers, written by index, read whole under a mask."""

    def __init__(self, model: Gpt) -> None:
        self.model = model

    @torch.no_grad()
    def __call__(self, label: int, rows: int, *, length: int, scale: float, temperature: float = 1.0) -> Tensor:
        """Ids int64 [rows, length] of one class; ``scale`` 1 is no guidance, ``temperature`` 0 takes the most likely."""
        model, config = self.model, self.model.config
        labels = torch.full((rows,), label, device=model.device)
        if scale != 1.0:
            labels = torch.cat([labels, torch.full_like(labels, config.num_classes)])
        shape = (len(labels), config.num_heads, length, config.width // config.num_heads)
        self.keys = [torch.zeros(shape, device=model.device, dtype=model.dtype) for _ in model.blocks]
        self.values = [torch.zeros(shape, device=model.device, dtype=model.dtype) for _ in model.blocks]
        causal = torch.ones(length, length, dtype=torch.bool, device=model.device).tril()
        classes = model.class_embed(labels)[:, None]
        if config.positions == "learned":
            classes = classes + model.pos_embed[:1]
        ids = torch.zeros(rows, 0, dtype=torch.int64, device=model.device)
        x = classes
        for position in range(length):
            if position:
                newest = ids[:, -1:].repeat(len(labels) // rows, 1)
                x = model.token_embed(newest)
                if config.positions == "learned":
                    x = x + model.pos_embed[position : position + 1]
            place = torch.tensor([position], device=model.device)
            for layer, block in enumerate(model.blocks):
                x = self._block(block, layer, x, F.silu(classes) if config.modulated else None, place, causal)
            x = model.norm(x)
            if model.modulation is not None:
                shift, size = model.modulation(F.silu(classes)).chunk(2, dim=-1)
                x = x * (1 + size) + shift
            ids = torch.cat([ids, _draw(model.head(x[:, -1]), rows, scale, temperature)], dim=1)
        return ids

    def _block(
        self, block: GptBlock, layer: int, x: Tensor, modulating: Tensor | None, place: Tensor, causal: Tensor
    ) -> Tensor:
        if modulating is None:
            x = x + self._attend(block, layer, block.norm1(x), place, causal)
            return x + block.mlp(block.norm2(x))
        shift1, scale1, gate1, shift2, scale2, gate2 = block.modulation(modulating).chunk(6, dim=-1)
        x = x + gate1 * self._attend(block, layer, block.norm1(x) * (1 + scale1) + shift1, place, causal)
        return x + gate2 * block.mlp(block.norm2(x) * (1 + scale2) + shift2)

    def _attend(self, block: GptBlock, layer: int, x: Tensor, place: Tensor, causal: Tensor) -> Tensor:
        count, width = x.shape[0], x.shape[2]
        query, key, value = block.qkv(x).split(width, dim=-1)
        query, key, value = (part.view(count, 1, block.num_heads, -1) for part in (query, key, value))
        if block.query_norm is not None:
            query, key = block.query_norm(query), block.key_norm(key)
        if self.model.config.positions == "rotary_2d":
            query, key = (_rotate(part, self.model.rotations[place]) for part in (query, key))
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        self.keys[layer][:, :, place] = key
        self.values[layer][:, :, place] = value
        mask = causal[None, None, place].expand(count, -1, -1, -1)
        out = F.scaled_dot_product_attention(query, self.keys[layer], self.values[layer], attn_mask=mask)
        return block.proj(out.transpose(1, 2).reshape(count, 1, width))


class PlainCachedRar:
    """Keys and values in tensors that grow by concatenation; the whole sequence is embedded anew for each token."""

    def __init__(self, model: Rar) -> None:
        self.model = model

    @torch.no_grad()
    def __call__(self, label: int, rows: int, *, length: int, scale: float, temperature: float = 1.0) -> Tensor:
        """As ``PlainCachedGpt``; guidance has the one scale at every token."""
        model, config = self.model, self.model.config
        first_class = config.vocab_size + 1
        labels = torch.full((rows,), label + first_class, device=model.device)
        if scale != 1.0:
            labels = torch.cat([labels, torch.full_like(labels, config.num_classes + first_class)])
        classes = model.embed(labels)[:, None]
        cache: list[tuple[Tensor, Tensor] | None] = [None] * config.depth
        ids = torch.zeros(rows, 0, dtype=torch.int64, device=model.device)
        for position in range(length):
            tokens = model.embed(ids.repeat(len(labels) // rows, 1))
            x = torch.cat([model.start_embed.expand(len(labels), -1, -1), classes, tokens], dim=1)
            total = x.shape[1]
            x = x + model.pos_embed[:, :total]
            targets = torch.cat(
                [torch.zeros_like(model.target_embed[:, :1]), model.target_embed[:, 2 : total + 1]], dim=1
            )
            x = x + targets
            condition = F.silu(classes + model.slot_embed[:, :total])
            if position:
                x, condition = x[:, -1:], condition[:, -1:]
            for layer, block in enumerate(model.blocks):
                x, cache[layer] = self._block(block, x, condition, cache[layer])
            size, shift = model.modulation(condition).chunk(2, dim=-1)
            x = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + size) + shift
            ids = torch.cat([ids, _draw(model.head(x[:, -1]), rows, scale, temperature)], dim=1)
        return ids

    def _block(
        self, block: RarBlock, x: Tensor, condition: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        shift1, scale1, gate1, shift2, scale2, gate2 = block.modulation(condition).chunk(6, dim=-1)
        h = block.norm1(x) * (1 + scale1) + shift1
        count, new, width = h.shape
        query, key, value = block.qkv(h).view(count, new, 3, block.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        query, key = block.query_norm(query), block.key_norm(key)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        out = F.scaled_dot_product_attention(query, key, value, is_causal=past is None)
        x = x + gate1 * block.proj(out.transpose(1, 2).reshape(count, new, width))
        x = x + gate2 * block.mlp(block.norm2(x) * (1 + scale2) + shift2)
        return x, (key, value)


def plain_cached(model: torch.nn.Module) -> PlainCachedGpt | PlainCachedRar | None:
    """The plain counterpart of a model, where there is one."""
    if isinstance(model, Gpt):
        return PlainCachedGpt(model)
    return PlainCachedRar(model) if isinstance(model, Rar) else None


def _rotate(x: Tensor, rotations: Tensor) -> Tensor:
    """Neighbouring channels of [B, n, heads, d] by [n, d/2, 2]."""
    pairs = x.float().reshape(*x.shape[:-1], -1, 2)
    turn = rotations.view(1, pairs.shape[1], 1, pairs.shape[3], 2)
    turned = torch.stack(
        [
            pairs[..., 0] * turn[..., 0] - pairs[..., 1] * turn[..., 1],
            pairs[..., 1] * turn[..., 0] + pairs[..., 0] * turn[..., 1],
        ],
        dim=-1,
    )
    return turned.flatten(3).type_as(x)


def _draw(logits: Tensor, rows: int, scale: float, temperature: float) -> Tensor:
    """One id a row, [rows, 1]."""
    if scale != 1.0:
        conditional, null = logits.split(rows)
        logits = null + (conditional - null) * scale
    if temperature == 0.0:
        return logits.argmax(dim=-1, keepdim=True)
    return torch.multinomial(F.softmax(logits / temperature, dim=-1), num_samples=1)
