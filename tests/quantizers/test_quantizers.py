"""Quantizers: ids and latents there and back, gradients, the codebook that moves, the Gaussian."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vistok.errors import ConfigError
from vistok.models.titok import TiTok, TiTokConfig, TransformerSize
from vistok.quantizers import DiagonalGaussian, FiniteScalarQuantizer, GaussianBottleneck, Quantizer, VectorQuantizer

_levels = st.lists(st.integers(2, 9), min_size=1, max_size=4).map(tuple)


def all_ids(quantizer: Quantizer) -> Tensor:
    size = quantizer.codebook_size
    return torch.arange(math.prod(size) if isinstance(size, tuple) else size)[None]  # [1, K]


def make_vq(**options: object) -> VectorQuantizer:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(64, 6, **options)
    nn.init.normal_(quantizer.codebook)
    return quantizer


# quantize(lookup(ids)) == ids.


@given(levels=_levels)
def test_fsq_ids_go_there_and_back(levels: tuple[int, ...]) -> None:
    quantizer = FiniteScalarQuantizer(levels)
    ids = all_ids(quantizer)
    latents = quantizer.lookup(ids)
    out = quantizer(latents)
    assert torch.equal(out.ids, ids) and out.ids.dtype == torch.int64 and out.losses == {}
    torch.testing.assert_close(out.latents, latents, rtol=0, atol=1e-6)
    assert latents.dtype == torch.float32 and latents.shape == (1, math.prod(levels), len(levels))
    assert len(latents[0].unique(dim=0)) == math.prod(levels)
    assert float(latents.min()) == -1.0 and float(latents.max()) == 1.0


@pytest.mark.parametrize("levels", [(1000,), (1023,), (4096,), (8, 8, 8, 5, 5, 5), (7, 5, 5, 5, 5)])
def test_fsq_with_many_levels(levels: tuple[int, ...]) -> None:
    quantizer = FiniteScalarQuantizer(levels)
    ids = torch.randint(math.prod(levels), (4, 1000))
    assert torch.equal(quantizer(quantizer.lookup(ids)).ids, ids)
    if len(levels) == 1:
        assert torch.equal(quantizer(quantizer.lookup(all_ids(quantizer))).ids, all_ids(quantizer))


def test_fsq_uses_all_of_62_bits() -> None:
    quantizer = FiniteScalarQuantizer((2,) * 62)
    ids = torch.tensor([[0, 2**62 - 1, 2**61 + 1]])
    assert torch.equal(quantizer(quantizer.lookup(ids)).ids, ids)


@pytest.mark.parametrize("levels", [(), (1,), (8, 0), (-2, 3), (2,) * 64, (3,) * 40])
def test_fsq_refuses_impossible_levels(levels: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="levels"):
        FiniteScalarQuantizer(levels)


@given(levels=_levels, dtype=st.sampled_from([torch.bfloat16, torch.float16]))
def test_fsq_ids_are_exact_in_a_model_of_low_precision(levels: tuple[int, ...], dtype: torch.dtype) -> None:
    """Arithmetic on ids in bf16 would be wrong beyond 256."""
    quantizer = FiniteScalarQuantizer(levels).to(dtype)
    ids = all_ids(quantizer)
    assert torch.equal(quantizer(quantizer.lookup(ids)).ids, ids)
    assert torch.equal(quantizer(quantizer.lookup(ids).to(dtype)).ids, ids)
    assert quantizer.levels.dtype == quantizer.place_values.dtype == torch.int64


def test_fsq_inside_a_bf16_model_under_autocast() -> None:
    size = TransformerSize(32, 1, 2)
    config = TiTokConfig(
        image_size=16, patch_size=8, decoder_patch_size=8, encoder=size, decoder=size, num_tokens=4, quantizer="fsq",
        code_dim=4, levels=(8, 8, 8, 8),
    )  # fmt: skip
    model = TiTok(config).to(torch.bfloat16).eval()
    ids = torch.randint(4096, (16, 4))
    latents = model.quantizer.lookup(ids)
    with torch.autocast("cpu", torch.bfloat16):
        out = model.quantizer(latents)
        assert torch.equal(model.quantizer(latents.bfloat16()).ids, ids)
    assert torch.equal(out.ids, ids) and out.latents.dtype == torch.float32


@pytest.mark.parametrize("l2_norm", [False, True])
@pytest.mark.parametrize("cluster", [False, True])
def test_vq_ids_go_there_and_back(l2_norm: bool, cluster: bool) -> None:
    quantizer = make_vq(l2_norm=l2_norm, cluster=cluster)
    ids = all_ids(quantizer)
    rows = quantizer.lookup(ids)
    out = quantizer.eval()(rows)
    assert torch.equal(out.ids, ids) and torch.allclose(out.latents, rows, atol=1e-6)
    assert max(loss.item() for loss in out.losses.values()) < 1e-12
    if l2_norm:
        torch.testing.assert_close(rows.norm(dim=-1), torch.ones(1, 64))


@settings(max_examples=30)
@given(size=st.integers(1, 40), dim=st.integers(2, 6), l2_norm=st.booleans(), seed=st.integers(0, 99))
def test_fresh_codebooks_go_there_and_back(size: int, dim: int, l2_norm: bool, seed: int) -> None:
    torch.manual_seed(seed)
    quantizer = VectorQuantizer(size, dim, l2_norm=l2_norm)
    assert float(quantizer.codebook.detach().abs().max()) <= 1.0 / size
    assert torch.equal(quantizer(quantizer.lookup(all_ids(quantizer))).ids, all_ids(quantizer))


@pytest.mark.parametrize("l2_norm", [False, True])
def test_vq_finds_the_nearest_row(l2_norm: bool) -> None:
    quantizer = make_vq(l2_norm=l2_norm)
    latents = torch.randn(3, 50, 6)
    normalise = nn.functional.normalize if l2_norm else lambda x, dim: x
    distances = torch.cdist(normalise(latents, dim=-1).double(), normalise(quantizer.codebook, dim=-1).double()[None])
    out = quantizer(latents)
    assert torch.equal(out.ids, distances.argmin(dim=-1))
    nearest = distances.min(dim=-1).values.square().mean().item() / 6
    assert out.losses["codebook"].item() == pytest.approx(nearest, rel=1e-5)
    assert out.losses["commitment"].item() == pytest.approx(0.25 * nearest, rel=1e-5)


# Gradients.


def test_fsq_passes_gradients_straight_through_and_none_where_it_clamps() -> None:
    quantizer = FiniteScalarQuantizer((5, 3))
    latents = torch.tensor([[[0.3, -0.2], [1.7, 0.0], [-0.9, -3.0]]], requires_grad=True)
    weights = torch.randn(1, 3, 2)
    (quantizer(latents).latents * weights).sum().backward()
    inside = torch.tensor([[[True, True], [False, True], [True, False]]])
    assert torch.equal(latents.grad, weights * inside)


def test_vq_passes_gradients_straight_through() -> None:
    quantizer = make_vq()
    latents = torch.randn(2, 7, 6, requires_grad=True)
    weights = torch.randn(2, 7, 6)
    (quantizer(latents).latents * weights).sum().backward()
    assert torch.equal(latents.grad, weights) and quantizer.codebook.grad is None


def test_vq_with_unit_length_passes_gradients_through_the_normalisation() -> None:
    quantizer = make_vq(l2_norm=True)
    latents = torch.randn(2, 7, 6, requires_grad=True)
    weights = torch.randn(2, 7, 6)
    (quantizer(latents).latents * weights).sum().backward()
    wanted = torch.autograd.grad((nn.functional.normalize(latents, dim=-1) * weights).sum(), latents)[0]
    torch.testing.assert_close(latents.grad, wanted)
    assert float((latents.grad * latents.detach()).sum(-1).abs().max()) < 1e-5, "no gradient along the latent itself"


def test_each_vq_term_moves_its_own_side() -> None:
    quantizer = make_vq(commitment_cost=0.5)
    latents = torch.randn(2, 7, 6, requires_grad=True)
    losses = quantizer(latents).losses
    grads = torch.autograd.grad(
        losses["commitment"], [latents, quantizer.codebook], allow_unused=True, retain_graph=True
    )
    assert grads[0].any() and grads[1] is None
    grads = torch.autograd.grad(losses["codebook"], [latents, quantizer.codebook], allow_unused=True)
    assert grads[0] is None and grads[1].any()


# A codebook whose unused rows move (CVQ).


def test_cvq_moves_unused_rows_to_latents_and_leaves_used_ones() -> None:
    quantizer = make_vq(cluster=True).train()
    with torch.no_grad():
        quantizer.usage[:8] = 1 / 8  # rows 0..7 have always been used
    before = quantizer.codebook.detach().clone()
    latents = torch.randn(4, 30, 6)
    quantizer(latents)
    after = quantizer.codebook.detach()
    assert torch.equal(after[:8], before[:8])
    unused = (quantizer.usage == 0.0).nonzero()[:, 0]
    assert len(unused) > 10 and int(unused.min()) >= 8
    # A row without any use goes nearly all of the way to the latent nearest to where it was.
    flat = latents.flatten(0, 1)
    nearest = flat[torch.cdist(before[unused], flat).argmin(dim=1)]
    blend = math.exp(-1e-3)
    torch.testing.assert_close(after[unused], (1 - blend) * before[unused] + blend * nearest)


@pytest.mark.parametrize("l2_norm", [False, True])
def test_rows_that_move_do_not_change_the_gradients(l2_norm: bool) -> None:
    """The backward pass comes after the move, and is of the codebook before it."""
    latents, gradients = torch.randn(8, 60, 6), []
    for cluster in (False, True):
        quantizer = make_vq(cluster=cluster, l2_norm=l2_norm, entropy_weight=0.1).train()
        before = quantizer.codebook.detach().clone()
        losses = quantizer(latents).losses
        assert torch.equal(before, quantizer.codebook) != cluster
        (losses["codebook"] + losses["entropy"]).backward()
        gradients.append(quantizer.codebook.grad)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-8)


def test_cvq_counts_usage_as_a_running_share() -> None:
    quantizer = make_vq(cluster=True).train()
    latents = torch.randn(2, 40, 6)
    ids = quantizer(latents).ids.flatten()
    share = torch.bincount(ids, minlength=64) / 80
    torch.testing.assert_close(quantizer.usage, 0.01 * share)
    assert "usage" in quantizer.state_dict() and "usage" not in make_vq().state_dict()


@pytest.mark.parametrize("options", [{"cluster": True}, {"cluster": False}])
def test_evaluation_moves_nothing(options: dict[str, bool]) -> None:
    quantizer = make_vq(**options).eval()
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    quantizer(torch.randn(2, 40, 6))
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())
    if not options["cluster"]:
        quantizer.train()(torch.randn(2, 40, 6))
        assert torch.equal(quantizer.codebook, before["codebook"])


def test_cvq_does_not_disturb_the_gradients_of_its_own_step() -> None:
    grads = []
    latents = torch.randn(2, 20, 6)
    for training in (False, True):
        quantizer = make_vq(cluster=True).train(training)
        x = latents.clone().requires_grad_()
        out = quantizer(x)
        (out.latents.square().mean() + sum(out.losses.values())).backward()
        grads.append((x.grad, quantizer.codebook.grad))
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


# Low precision around a quantizer.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_quantizers_compute_in_fp32_whatever_comes(dtype: torch.dtype) -> None:
    latents = torch.randn(2, 5, 6).to(dtype)
    for quantizer in (make_vq(l2_norm=True), FiniteScalarQuantizer((4,) * 6)):
        with torch.autocast("cpu", torch.bfloat16):
            out = quantizer(latents)
            assert out.latents.dtype == torch.float32
            assert all(loss.dtype == torch.float32 for loss in out.losses.values())
        assert torch.equal(out.ids, quantizer(latents.float()).ids)
    with torch.autocast("cpu", torch.bfloat16):
        assert GaussianBottleneck(3)(latents).mean.dtype == torch.float32


# The Gaussian.


def test_kl_is_that_of_torch_distributions() -> None:
    moments = 2 * torch.randn(3, 5, 8)
    posterior = DiagonalGaussian(moments)
    mean, logvar = moments.chunk(2, dim=-1)
    normal = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    wanted = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(dim=-1)
    torch.testing.assert_close(posterior.kl(), wanted)
    torch.testing.assert_close(posterior.std, normal.scale)
    assert float(DiagonalGaussian(torch.zeros(1, 1, 4)).kl()) == 0.0


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_kl_is_finite_and_not_negative(mean: float, logvar: float) -> None:
    kl = DiagonalGaussian(torch.tensor([[[mean, logvar]]])).kl()
    assert torch.isfinite(kl).all() and float(kl) >= -1e-6


def test_samples_follow_the_generator_and_the_noise() -> None:
    posterior = GaussianBottleneck(3)(torch.randn(4, 5, 6))

    def draw(seed: int) -> Tensor:
        return posterior.sample(generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    state = torch.get_rng_state()
    draw(3)
    assert torch.equal(state, torch.get_rng_state()), "a generator leaves the global state alone"
    noise = torch.randn(4, 5, 3)
    assert torch.equal(posterior.sample(noise=noise), posterior.mean + posterior.std * noise)
    assert torch.equal(posterior.sample(noise=torch.zeros(4, 5, 3)), posterior.mean)


def test_samples_have_the_mean_and_spread() -> None:
    moments = torch.tensor([0.5, -1.0, 0.0, 1.0]).expand(20_000, 1, 4)
    samples = DiagonalGaussian(moments).sample(generator=torch.Generator().manual_seed(0))[:, 0]
    torch.testing.assert_close(samples.mean(dim=0), torch.tensor([0.5, -1.0]), rtol=0, atol=0.05)
    torch.testing.assert_close(samples.std(dim=0), torch.tensor([1.0, math.exp(0.5)]), rtol=0, atol=0.05)
