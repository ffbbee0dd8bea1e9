"""The noise predictor of a token: a small residual MLP under adaptive norms (MAR, arXiv:2406.11838, section 3.3).

It denoises every token by itself; what the token should be comes as a condition from a transformer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.layers.modulated_transformer import TimeEmbedding
from vistok.layers.positions import timestep_features

_TIME_FEATURES = 256
_NORM_EPS = 1e-6


class DiffusionHead(nn.Module):
    """Noised tokens, timesteps and conditions to predicted noise and variance.

    Args:
        channels: C of a token.
        condition_width: of the conditions.
        width, depth: of the MLP.
    """

    def __init__(self, channels: int, condition_width: int, *, width: int, depth: int) -> None:
        super().__init__()
        self.input_proj = nn.Linear(channels, width)
        self.condition_proj = nn.Linear(condition_width, width)
        self.time_embed = TimeEmbedding(_TIME_FEATURES, width)
        self.blocks = nn.ModuleList(HeadBlock(width) for _ in range(depth))
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, 2 * channels)
        self.gradient_checkpointing = False
        self.init_weights()

    def init_weights(self) -> None:
        """Blocks begin as the identity and the output at zero, as MAR trains it."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for layer in (self.time_embed.fc1, self.time_embed.fc2):
            nn.init.normal_(layer.weight, std=0.02)
        for layer in (self.modulation, self.out, *(block.modulation for block in self.blocks)):
            nn.init.zeros_(layer.weight)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Noised tokens [M, C], timesteps [M] in [0, 1000), conditions [M, W] -> [M, 2C]: noise, then variance."""
        features = timestep_features(t, _TIME_FEATURES, max_period=10000.0)
        activated = F.silu(self.time_embed(features) + self.condition_proj(condition))
        x = self.input_proj(x)
        for block in self.blocks:
            x = block(x, activated)
        shift, scale = self.modulation(activated).chunk(2, dim=-1)
        x = F.layer_norm(x, x.shape[-1:], eps=_NORM_EPS)
        return self.out(x * (1 + scale) + shift)


class HeadBlock(nn.Module):
    """x += gate * mlp(norm(x) * (1 + scale) + shift)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=_NORM_EPS)
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)
        self.modulation = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, activated: Tensor) -> Tensor:
        """[M, W] -> [M, W]; ``activated`` [M, W] is what the terms of modulation are read from."""
        shift, scale, gate = self.modulation(activated).chunk(3, dim=-1)
        hidden = self.norm(x) * (1 + scale) + shift
        return x + gate * self.fc2(F.silu(self.fc1(hidden)))


def guide_noise(output: Tensor, null_output: Tensor, scale: float | Tensor) -> Tensor:
    """Guidance of the predicted noise only: the variance [M, 2C] -> [.., C:] stays the conditional one's."""
    noise, variance = output.chunk(2, dim=-1)
    null = null_output.chunk(2, dim=-1)[0]
    return torch.cat([null + scale * (noise - null), variance], dim=-1)
