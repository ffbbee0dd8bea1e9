"""Vector quantisation with a learned codebook (VQ-VAE, arXiv:1711.00937).

With ``l2_norm`` latents and codebook rows are compared on the unit sphere (ViT-VQGAN,
arXiv:2110.04627). With ``gradient: rotation`` latents get the gradient of their row turned onto them
(arXiv:2410.06424). With ``entropy_weight`` every latent is drawn to few rows and all latents together
to many (arXiv:2310.05737). With ``cluster`` rows that are seldom used move towards the latents nearest to
them (CVQ-VAE, arXiv:2307.15139), as TA-TiTok's training does.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.layers.distributed import all_gather, all_mean
from vistok.quantizers.base import Quantized, Quantizer

_CLUSTER_DECAY = 0.99
_NORM_EPS = 1e-12
_ROTATION_EPS = 1e-6
_ENTROPY_TEMPERATURE = 0.01
_ENTROPY_EPS = 1e-5


class VectorQuantizer(Quantizer):
    """Nearest row of a codebook.

    Args:
        codebook_size: K, number of rows.
        code_dim: C, channels of a row.
        commitment_cost: weight of the term that draws latents to their rows.
        l2_norm: normalise latents and rows to length one, gradients included.
        cluster: move unused rows to latents in training mode (needs a pass over all processes).
        gradient: how it reaches latents: ``straight_through`` unchanged, or turned and stretched the way that
            turns and stretches a latent into its row (``rotation``).
        entropy_weight: of the entropy term, which is computed in training mode, over this process's latents; 0 for none.
    """

    def __init__(
        self,
        codebook_size: int,
        code_dim: int,
        *,
        commitment_cost: float = 0.25,
        l2_norm: bool = False,
        cluster: bool = False,
        gradient: Literal["straight_through", "rotation"] = "straight_through",
        entropy_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.codebook_size = codebook_size
        self.code_dim = code_dim
        self.commitment_cost = commitment_cost
        self.l2_norm = l2_norm
        self.cluster = cluster
        self.gradient = gradient
        self.entropy_weight = entropy_weight
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
        """Quantise [B, L, C]; ``losses``: ``commitment`` and ``entropy`` (with their weights) and ``codebook``."""
        with torch.autocast(latents.device.type, enabled=False):
            raw, codebook = latents.float(), self.codebook.float()
            moves = self.cluster and self.training
            # Rows move before the backward pass, which is to see them as they were.
            z, rows = self._normalise(raw), self._normalise(codebook.clone() if moves else codebook)
            wants_entropy = self.training and self.entropy_weight > 0.0
            with torch.set_grad_enabled(torch.is_grad_enabled() and wants_entropy):
                distances = self._distances(z.flatten(0, 1), rows)  # [B*L, K]
            ids = distances.detach().argmin(dim=1).view(z.shape[:2])
            quantised = F.embedding(ids, rows)
            losses = {
                "commitment": self.commitment_cost * F.mse_loss(z, quantised.detach()),
                "codebook": F.mse_loss(quantised, z.detach()),
            }
            if wants_entropy:
                losses["entropy"] = self.entropy_weight * assignment_entropy(distances)
            rotates = self.gradient == "rotation"
            out = rotate_to(z, quantised.detach()) if rotates else z + (quantised - z).detach()
            if moves:
                self._move_unused_rows(raw.detach().flatten(0, 1), distances.detach(), ids)
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
        self.codebook.data.mul_(1.0 - blend).add_(anchors * blend)


def rotate_to(z: Tensor, target: Tensor) -> Tensor:
    """The rotation trick (arXiv:2410.06424): ``target`` in value, linear in ``z`` for the gradient.

    The linear map, which is held constant, reflects twice (which is a rotation, in the plane of both)
    and stretches to the target's length.

    Args:
        z: [..., C], not zero.
        target: [..., C], without gradient.
    """
    with torch.no_grad():
        from_unit, to_unit = F.normalize(z, dim=-1, eps=_NORM_EPS), F.normalize(target, dim=-1, eps=_NORM_EPS)
        middle = F.normalize(from_unit + to_unit, dim=-1, eps=_NORM_EPS)
        stretch = target.norm(dim=-1, keepdim=True) / (z.norm(dim=-1, keepdim=True) + _ROTATION_EPS)
    along_middle = (z * middle).sum(dim=-1, keepdim=True)
    along_from = (z * from_unit).sum(dim=-1, keepdim=True)
    return stretch * (z - 2.0 * along_middle * middle + 2.0 * along_from * to_unit)


def assignment_entropy(distances: Tensor) -> Tensor:
    """Mean entropy of each latent's soft assignment to rows, less the entropy of the mean assignment.

    Args:
        distances: squared, [M, K].
    Returns:
        a scalar, low where every latent has one near row and all rows are used alike.
    """
    logits = distances / -_ENTROPY_TEMPERATURE
    log_shares = logits.log_softmax(dim=-1)
    shares = log_shares.exp()
    mean = shares.mean(dim=0)
    each = -(shares * log_shares).sum(dim=-1).mean()
    together = -(mean * (mean + _ENTROPY_EPS).log()).sum()
    return each - together
