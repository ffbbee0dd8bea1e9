"""The continuous bottleneck: a diagonal Gaussian a token (auto-encoding variational Bayes, arXiv:1312.6114)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LOGVAR_RANGE = (-30.0, 20.0)


class DiagonalGaussian:
    """A Gaussian with a diagonal covariance for every latent.

    Args:
        moments: [B, L, 2C]; the first C channels are means, the rest log-variances, clamped to [-30, 20].
    """

    def __init__(self, moments: Tensor) -> None:
        self.mean, logvar = moments.float().chunk(2, dim=-1)
        self.logvar = logvar.clamp(*_LOGVAR_RANGE)

    @property
    def std(self) -> Tensor:
        """Standard deviations [B, L, C]."""
        return torch.exp(0.5 * self.logvar)

    def sample(self, *, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        """mean + std * noise, [B, L, C]; noise is drawn from N(0, 1) where it is not given."""
        if noise is None:
            # Drawn on the generator's own device: the numbers then do not depend on where the model runs.
            device = generator.device if generator is not None else self.mean.device
            noise = torch.randn(self.mean.shape, generator=generator, device=device).to(self.mean.device)
        return self.mean + self.std * noise

    def kl(self) -> Tensor:
        """Divergence from N(0, 1) of every latent, in nats: [B, L]."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar).sum(dim=-1)


class GaussianBottleneck(nn.Module):
    """Reads moments as a Gaussian; stands where a quantizer stands in discrete tokenizers."""

    def __init__(self, code_dim: int) -> None:
        super().__init__()
        self.code_dim = code_dim

    def forward(self, moments: Tensor) -> DiagonalGaussian:
        """Moments [B, L, 2C] -> the posterior, in fp32."""
        with torch.autocast(moments.device.type, enabled=False):
            return DiagonalGaussian(moments)
