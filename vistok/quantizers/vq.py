"""Vector quantisation with a learned codebook (VQ-VAE, arXiv:1711.00937).

With ``l2_norm`` latents and codebook rows are compared on the unit sphere (ViT-VQGAN,
arXiv:2110.04627). With ``cluster`` rows that are seldom used move towards the latents nearest to
them (CVQ-VAE, arXiv:2307.15139), as TA-TiTok's training does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.layers.distributed import all_gather, all_mean
from vistok.quantizers.base import Quantized, Quantizer

_CLUSTER_DECAY = 0.99
_NORM_EPS = 1e-12


class VectorQuantizer(Quantizer):
    """Nearest row of a codebook.

    Args:
        codebook_size: K, number of rows.
        code_dim: C, channels of a row.
        commitment_cost: weight of the term that draws latents to their rows.
        l2_norm: normalise latents and rows to length one, gradients included.
        cluster: move unused rows to latents in training mode (needs a pass over all processes).
    """

    def __init__(
        self,
        codebook_size: int,
        code_dim: int,
        *,
        commitment_cost: float = 0.25,
        l2_norm: bool = False,
        cluster: bool = False,
    ) -> None:
        super().__init__()
        self.codebook_size = codebook_size
        self.code_dim = code_dim
        self.commitment_cost = commitment_cost
        self.l2_norm = l2_norm
        self.cluster = cluster
        self.codebook = nn.Parameter(torch.empty(codebook_size, code_dim))
        if cluster:
            self.register_buffer("usage", torch.zeros(codebook_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Rows uniform in (-1/K, 1/K), usage zero."""
        nn.init.uniform_(self.codebook, -1.0 / self.codebook_size, 1.0 / self.codebook_size)
        if self.cluster:
            self.usage.zero_()

    def forward(self, latents: Tensor) -> Quantized:
        """Quantise [B, L, C]; ``losses`` holds ``commitment`` (with its cost) and ``codebook``."""
        with torch.autocast(latents.device.type, enabled=False):
            raw = latents.float()
            z, rows = self._normalise(raw), self._normalise(self.codebook.float())
            with torch.no_grad():
                distances = self._distances(z.flatten(0, 1), rows)  # [B*L, K]
                ids = distances.argmin(dim=1).view(z.shape[:2])
            quantised = F.embedding(ids, rows)
            losses = {
                "commitment": self.commitment_cost * F.mse_loss(z, quantised.detach()),
                "codebook": F.mse_loss(quantised, z.detach()),
            }
            out = z + (quantised - z).detach()
            if self.cluster and self.training:
                self._move_unused_rows(raw.detach().flatten(0, 1), distances, ids)
        return Quantized(latents=out, ids=ids, losses=losses)

    def lookup(self, ids: Tensor) -> Tensor:
        """The (normalised, with ``l2_norm``) rows of ids [B, L] -> [B, L, C]."""
        return self._normalise(F.embedding(ids, self.codebook.float()))

    def _normalise(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1, eps=_NORM_EPS) if self.l2_norm else x

    @staticmethod
    def _distances(z: Tensor, rows: Tensor) -> Tensor:
        """Squared distances [M, K]; one fused product, since this matrix is the largest tensor in sight."""
        squares = z.square().sum(dim=1, keepdim=True) + rows.square().sum(dim=1)
        return torch.addmm(squares, z, rows.t(), alpha=-2.0)

    @torch.no_grad()
    def _move_unused_rows(self, raw: Tensor, distances: Tensor, ids: Tensor) -> None:
        """Blend every row with the nearest raw latent, the more the less the row is used."""
        raw, distances, flat = all_gather(raw), all_gather(distances), ids.flatten()
        size = self.codebook_size
        share = torch.bincount(flat, minlength=size).float() / flat.numel()
        self.usage.mul_(_CLUSTER_DECAY).add_(all_mean(share), alpha=1.0 - _CLUSTER_DECAY)
        blend = torch.exp(-self.usage * size * 10.0 / (1.0 - _CLUSTER_DECAY) - 1e-3)[:, None]  # [K, 1]
        anchors = raw[distances.argmin(dim=0)]  # [K, C]
        # In place on the data: the graph of the losses holds copies of what it needs.
        self.codebook.data.mul_(1.0 - blend).add_(anchors * blend)
