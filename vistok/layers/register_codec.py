"""Register transformers: a map of features -> ordered register tokens -> a velocity for a noised map.

The shape of FlexTok (arXiv:2502.13967, section 3). Maps are [B, C, H, W], cut into patches whose
vectors are in the order (row, column, channel).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.layers.modulated_transformer import ModulatedBlock, PlainBlock, TimeEmbedding, plain_norm, run_block
from vistok.layers.patches import patchify, unpatchify
from vistok.layers.positions import sincos_2d, timestep_features
from vistok.layers.ragged import Group, RaggedLayout


class RegisterEncoder(nn.Module):
    """[patches | registers] through a transformer, of which the registers are kept.

    Patches see patches; a register sees all patches, itself and the registers before it (or, without
    ``causal``, everything sees everything). So register i does not depend on later ones.

    Args:
        channels: C of the map.
        patch_size, grid_size: p, and the largest (h, w) in patches.
        num_registers: N.
        width, depth, head_dim: the transformer's size.
        out_dim: channels of a register that is given out.
        causal: the mask described above.
    """

    def __init__(
        self,
        *,
        channels: int,
        patch_size: int,
        grid_size: tuple[int, int],
        num_registers: int,
        width: int,
        depth: int,
        head_dim: int,
        out_dim: int,
        causal: bool = True,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.causal = causal
        self.patch_embed = nn.Linear(channels * patch_size**2, width)
        self.register_buffer("pos_embed", sincos_2d(*grid_size, width))  # published checkpoints hold it
        self.registers = nn.Parameter(torch.empty(num_registers, width))
        self.blocks = nn.ModuleList(PlainBlock(width, head_dim) for _ in range(depth))
        self.to_latents = nn.Linear(width, out_dim)
        self.gradient_checkpointing = False

    def features(self, x: Tensor, *, length: int | None = None) -> Tensor:
        """Map [B, C, H, W] -> the last block's registers [B, L, D]: the first ``length``, or all."""
        patches = _embed_patches(x, self.patch_size, self.patch_embed, self.pos_embed)
        registers = self.registers
        if self.causal and length is not None:
            registers = registers[:length]
        num_patches = patches.shape[1]
        hidden = torch.cat([patches, registers.to(patches.dtype).expand(len(x), -1, -1)], dim=1)
        only_registers = slice(num_patches, hidden.shape[1])
        mask = None
        if self.causal:
            mask = torch.ones(len(registers), hidden.shape[1], dtype=torch.bool, device=x.device).tril(num_patches)

        def attend(query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> Tensor:
            query, key, value = (part.transpose(1, 2) for part in (query, key, value))  # [B, heads, L, d]
            if mask is None:
                return F.scaled_dot_product_attention(query, key, value, scale=scale).transpose(1, 2)
            asking = query.shape[2] - len(registers)  # patches, or none in the last block
            parts = [F.scaled_dot_product_attention(query[:, :, asking:], key, value, attn_mask=mask, scale=scale)]
            if asking:
                patch_key, patch_value = key[:, :, :num_patches], value[:, :, :num_patches]
                seen = F.scaled_dot_product_attention(query[:, :, :asking], patch_key, patch_value, scale=scale)
                parts.insert(0, seen)
            return torch.cat(parts, dim=2).transpose(1, 2)

        last = len(self.blocks) - 1
        for index, block in enumerate(self.blocks):
            keep = only_registers if index == last else None
            hidden = run_block(block, hidden, attend, keep, recompute=self.gradient_checkpointing and self.training)
        return hidden[:, :length]

    def forward(self, x: Tensor, *, length: int | None = None) -> Tensor:
        """Map [B, C, H, W] -> latents [B, L, out_dim]."""
        return self.to_latents(plain_norm(self.features(x, length=length)))


@dataclass(frozen=True)
class RegisterCondition:
    """What a velocity is conditioned on, ready for any number of steps.

    Attributes:
        layout: of the packed rows; its sequences are sorted by length.
        rows: [R, D], the registers' rows of all sequences.
        order: int64 [S]; ``order[i]`` is the place of the layout's i-th sequence in the order asked for.
    """

    layout: RaggedLayout
    rows: Tensor
    order: Tensor


@dataclass(frozen=True)
class Modulations:
    """Terms of modulation for M times: one [M, kinds, 6, D] a block, and the head's [M, 2, D]."""

    blocks: tuple[Tensor, ...]
    head: Tensor

    def at(self, index: int) -> Modulations:
        """Those of one time, for all sequences."""
        rows = slice(index, index + 1)
        return Modulations(tuple(terms[rows] for terms in self.blocks), self.head[rows])

    def select(self, order: Tensor) -> Modulations:
        """Those of the given times."""
        return Modulations(tuple(terms[order] for terms in self.blocks), self.head[order])


class FlowDecoder(nn.Module):
    """[noised patches | registers] through a modulated transformer, of which the patches become a velocity.

    Dropped registers are all the same mask token, without a position; unconditionally, all of them
    are the same null token. Both ways of laying this out give the same numbers: ``fast`` has one row for
    all identical registers of a sequence (see ``vistok.layers.ragged``), otherwise each has its own.

    Args:
        channels, patch_size, grid_size: of the map.
        num_registers, latent_dim: N, and channels of a register that comes in.
        width, depth, head_dim: the transformer's size.
        kinds: 2 where patches and registers are modulated apart.
        time_features, max_timestep: see ``timestep_features``.
        feature_layer: the block, counted from 0, whose patches are given out too; None for none.
        hints: the decoder also sees a map that is a first guess of the clean one.
    """

    def __init__(
        self,
        *,
        channels: int,
        patch_size: int,
        grid_size: tuple[int, int],
        num_registers: int,
        latent_dim: int,
        width: int,
        depth: int,
        head_dim: int,
        kinds: int = 2,
        time_features: int = 256,
        max_timestep: float = 1000.0,
        feature_layer: int | None = None,
        hints: bool = False,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.num_registers = num_registers
        self.time_features = time_features
        self.max_timestep = max_timestep
        self.feature_layer = feature_layer
        self.latent_embed = nn.Linear(latent_dim, width)
        self.register_pos_embed = nn.Parameter(torch.empty(num_registers, width))
        self.mask_token = nn.Parameter(torch.empty(width))
        self.null_token = nn.Parameter(torch.empty(width))
        self.patch_embed = nn.Linear(channels * patch_size**2, width)
        self.hint_embed = nn.Linear(channels * patch_size**2, width) if hints else None
        self.register_buffer("pos_embed", sincos_2d(*grid_size, width))
        self.time_embed = TimeEmbedding(time_features, width)
        self.blocks = nn.ModuleList(ModulatedBlock(width, head_dim, kinds=kinds) for _ in range(depth))
        self.head_modulation = nn.Linear(width, 2 * width)
        self.to_patches = nn.Linear(width, channels * patch_size**2)
        self.gradient_checkpointing = False

    def condition(
        self, latents: Tensor, keep: Sequence[int], *, num_patches: int, fast: bool = True
    ) -> RegisterCondition:
        """Registers of the sequences to run.

        Args:
            latents: [B, L, latent_dim], the registers; those past a sequence's ``keep`` are not read.
            keep: of each sequence, how many leading registers it keeps: 1..L, or 0 for the unconditional
                one. A multiple of B numbers; sequence s reads ``latents[s % B]``.
            num_patches: P, patches of the map.
            fast: one row for all identical registers.
        """
        registers = self.latent_embed(latents.to(self.latent_embed.weight.dtype))
        registers = registers + self.register_pos_embed[: registers.shape[1]]  # [B, L, D]
        batch = len(latents)
        order = sorted(range(len(keep)), key=lambda index: keep[index])
        groups, rows = [], []
        for length in sorted(set(keep)):
            sequences = [index for index in order if keep[index] == length]
            dropped = self.num_registers - length
            samples = torch.tensor([index % batch for index in sequences], device=latents.device)
            kept = registers[samples, :length]  # [count, k, D]
            filler = self.mask_token if length else self.null_token
            fillers = (1 if fast else dropped) if dropped else 0
            full = torch.cat([kept, filler.to(kept.dtype).expand(len(sequences), fillers, -1)], dim=1)
            rows.append(full.flatten(0, 1))
            groups.append(Group(len(sequences), full.shape[1], max(1, dropped) if fast else 1))
        if not fast:  # all sequences have the same length: one group
            groups = [Group(len(keep), self.num_registers)]
        layout = RaggedLayout(num_patches, groups)
        return RegisterCondition(layout, torch.cat(rows), torch.tensor(order, device=latents.device))

    def modulations(self, times: Tensor) -> Modulations:
        """Terms of modulation for times [M]; a sampler asks once for all of its steps."""
        features = timestep_features(times, self.time_features, max_timestep=self.max_timestep)
        activated = F.silu(self.time_embed(features))  # [M, D]
        blocks = tuple(block.terms(activated) for block in self.blocks)
        return Modulations(blocks, self.head_modulation(activated).unflatten(-1, (2, -1)))

    def forward(
        self, x: Tensor, modulations: Modulations, condition: RegisterCondition, *, hint: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The velocity of noised maps.

        Args:
            x: [B, C, H, W]; the condition's S sequences are a multiple of B, and s reads ``x[s % B]``.
            modulations: of one time, or of each sequence's.
            condition: from ``condition``.
            hint: [S, C, H, W], with ``hints``.
        Returns:
            velocities [S, C, H, W], and the patches of ``feature_layer`` [S, h*w, D] or None; both in the
            order of the condition's ``keep``.
        """
        layout, order = condition.layout, condition.order
        grid = (x.shape[2] // self.patch_size, x.shape[3] // self.patch_size)
        patches = _embed_patches(x, self.patch_size, self.patch_embed, self.pos_embed)
        patches = patches[order % len(x)]  # [S, P, D]
        if self.hint_embed is not None:
            patches = patches + self.hint_embed(patchify(hint, self.patch_size).to(patches.dtype))[order]
        if len(modulations.head) > 1:
            modulations = modulations.select(order)
        hidden = torch.cat([patches.flatten(0, 1), condition.rows.to(patches.dtype)])
        features = None
        for index, (block, terms) in enumerate(zip(self.blocks, modulations.blocks, strict=True)):
            hidden = run_block(block, hidden, terms, layout, recompute=self.gradient_checkpointing and self.training)
            if index == self.feature_layer:
                features = self._patch_rows(hidden, layout)
        shift, scale = modulations.head.unbind(1)
        out = plain_norm(self._patch_rows(hidden, layout)) * (1.0 + scale[:, None]) + shift[:, None]
        velocity = unpatchify(self.to_patches(out), self.patch_size, grid)
        back = torch.argsort(order)
        return velocity[back], None if features is None else features[back]

    @staticmethod
    def _patch_rows(hidden: Tensor, layout: RaggedLayout) -> Tensor:
        return hidden[: layout.num_patch_rows].unflatten(0, (layout.num_sequences, -1))


class ProjectionHead(nn.Module):
    """Norm, then three linear layers with SiLU between them: inner features to those of another network."""

    def __init__(self, width: int, hidden_width: int, out_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, hidden_width)
        self.out = nn.Linear(hidden_width, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., out_dim]."""
        return self.out(F.silu(self.fc2(F.silu(self.fc1(plain_norm(x))))))


def _embed_patches(x: Tensor, patch_size: int, embed: nn.Linear, table: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, h*w, D], positions added: the table's top left corner where the map is smaller."""
    height, width = x.shape[2] // patch_size, x.shape[3] // patch_size
    positions = table[0, :, :height, :width].flatten(1).t()  # [h*w, D]
    return embed(patchify(x, patch_size).to(embed.weight.dtype)) + positions
