"""The vector quantizer's rotation trick and entropy term, against plain computations."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vistok.quantizers import VectorQuantizer
from vistok.quantizers.vq import assignment_entropy, rotate_to


def make(**options: object) -> VectorQuantizer:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(40, 5, **options)
    nn.init.normal_(quantizer.codebook)
    return quantizer.train()


def test_the_rotation_is_one_and_ends_at_the_target() -> None:
    z, target = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    torch.testing.assert_close(rotate_to(z, target), target, rtol=1e-4, atol=1e-5)
    for row in range(6):
        matrix = torch.autograd.functional.jacobian(lambda x, to=target[row]: rotate_to(x, to), z[row])
        unit = matrix * z[row].norm() / target[row].norm()
        torch.testing.assert_close(unit @ unit.T, torch.eye(5, dtype=torch.float64), rtol=1e-4, atol=1e-5)
        assert torch.det(unit) > 0.99  # a rotation, no reflection
        torch.testing.assert_close(matrix @ z[row], target[row], rtol=1e-4, atol=1e-5)


def test_the_gradient_turns_with_the_latent() -> None:
    """The angle between a gradient and its row is the one between what arrives and its latent."""
    quantizer = make(gradient="rotation", l2_norm=True)
    z = F.normalize(torch.randn(1, 9, 5), dim=-1).requires_grad_()
    out = quantizer(z)
    g = torch.randn(1, 9, 5)
    (arrived,) = torch.autograd.grad((out.latents * g).sum(), z)
    tangent = g - (g * out.latents.detach()).sum(-1, keepdim=True) * out.latents.detach()
    torch.testing.assert_close(arrived.norm(dim=-1), tangent.norm(dim=-1), rtol=1e-4, atol=1e-5)
    assert torch.equal(out.ids, make(l2_norm=True)(z).ids)
    torch.testing.assert_close(out.latents, quantizer.lookup(out.ids), rtol=1e-4, atol=1e-5)


def test_entropy_by_its_definition() -> None:
    distances = 0.05 * torch.rand(7, 11, dtype=torch.float64)
    shares = [[math.exp(-float(d) / 0.01) for d in row] for row in distances]
    shares = [[x / sum(row) for x in row] for row in shares]
    each = -sum(x * math.log(x) for row in shares for x in row) / 7
    mean = [sum(row[k] for row in shares) / 7 for k in range(11)]
    together = -sum(x * math.log(x + 1e-5) for x in mean)
    assert float(assignment_entropy(distances)) == pytest.approx(each - together, rel=1e-9)


def test_entropy_is_low_where_latents_are_near_different_rows() -> None:
    far = torch.full((8, 8), 4.0)
    sure = far - 4.0 * torch.eye(8)
    same = far.clone()
    same[:, 0] = 0.0
    assert assignment_entropy(sure) < -2.0 < assignment_entropy(same) < 0.01
    assert assignment_entropy(torch.zeros(8, 8)).abs() < 1e-3


def test_the_entropy_term_moves_latents_and_rows_in_training_only() -> None:
    quantizer = make(entropy_weight=0.5, l2_norm=True)
    z = torch.randn(2, 20, 5, requires_grad=True)
    loss = quantizer(z).losses["entropy"]
    unit, rows = F.normalize(z, dim=-1), F.normalize(quantizer.codebook, dim=-1)
    torch.testing.assert_close(loss, 0.5 * assignment_entropy(torch.cdist(unit.flatten(0, 1), rows).square()))
    grads = torch.autograd.grad(loss, [z, quantizer.codebook])
    assert all(grad.any() for grad in grads)
    assert "entropy" not in quantizer.eval()(z).losses and "entropy" not in make()(z).losses
