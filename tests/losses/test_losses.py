"""Training losses: LPIPS against the lpips package, the adversary against hand-computed values, where gradients go."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from vistok.config import from_dict
from vistok.errors import CheckpointError, ConfigError
from vistok.losses.adversarial import BlurDownsample, LeCam, PatchDiscriminator, hinge_discriminator_loss
from vistok.losses.perceptual import LPIPS, ConvNextLogits, PerceptualLoss
from vistok.losses.tokenizer import TokenizerLoss, TokenizerLossConfig


@pytest.fixture(scope="module")
def network() -> LPIPS:
    """LPIPS with random weights."""
    torch.manual_seed(0)
    made = LPIPS()
    for key, value in made.slices.state_dict().items():
        if key.endswith("weight"):
            nn.init.kaiming_normal_(value, nonlinearity="relu")  # keeps all thirteen layers alive
    return made


@pytest.fixture(scope="module")
def convnext() -> ConvNextLogits:
    torch.manual_seed(0)
    return ConvNextLogits()


def images(count: int, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


# LPIPS.


@pytest.fixture(scope="module")
def oracle(network: LPIPS) -> nn.Module:
    """The lpips package with its published heads; ours gets the same heads and the same random VGG."""
    package = pytest.importorskip("lpips")
    with pytest.MonkeyPatch.context() as patch:  # its VGG16 comes with a classifier, which takes seconds to make
        features = SimpleNamespace(features=make_layers(cfgs["D"]))
        patch.setattr(package.pretrained_networks.tv, "vgg16", lambda **_: features)
        theirs = package.LPIPS(net="vgg", pnet_rand=True, pretrained=True, verbose=False)
    ours = network.state_dict()
    for index in range(5):
        part = getattr(theirs.net, f"slice{index + 1}")
        for key in part.state_dict():
            part.state_dict()[key].copy_(ours[f"slices.{index}.{key}"])
        network.heads[index].data.copy_(theirs.lins[index].model[1].weight.flatten())
    return theirs


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 16), (17, 17)])
def test_lpips_is_that_of_the_lpips_package(oracle: nn.Module, network: LPIPS, size: tuple[int, int]) -> None:
    x, y = images(3, *size), images(3, *size, seed=1)
    y[2] = x[2] + 0.01 * torch.randn_like(x[2])  # outside [0, 1] too: nothing is clamped
    with torch.no_grad():
        theirs = oracle(x, y, normalize=True).flatten()
    ours = network(x, y)
    assert ours.shape == (3,) and ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_the_gradient_of_lpips_is_that_of_the_lpips_package(oracle: nn.Module, network: LPIPS) -> None:
    x, y = images(2), images(2, seed=1)
    grads = []
    for distance in (lambda z: oracle(x, z, normalize=True), lambda z: network(x, z)):
        z = y.clone().requires_grad_()
        grads.append(torch.autograd.grad(distance(z).sum(), z)[0])
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-3, atol=1e-6)


def test_lpips_of_equal_images_is_zero_and_symmetric(network: LPIPS) -> None:
    x, y = images(2), images(2, seed=1)
    assert torch.equal(network(x, x), torch.zeros(2))
    torch.testing.assert_close(network(x, y), network(y, x))
    assert (network(x, y) > 0).all()


def test_lpips_of_features_that_are_all_off_has_a_finite_gradient(network: LPIPS) -> None:
    """A square root at zero has no derivative; such places may not poison the step."""
    x = images(1)
    z = torch.full_like(x, -50.0).requires_grad_()
    with torch.no_grad():
        bias = network.slices[0][0].bias.clone()
        network.slices[0][0].bias.fill_(-1e6)
    try:
        (gradient,) = torch.autograd.grad(network(x, z).sum(), z)
    finally:
        network.slices[0][0].bias.data.copy_(bias)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["network", "convnext"])
def test_helping_networks_are_frozen_and_stay_in_evaluation_mode(name: str, request: pytest.FixtureRequest) -> None:
    module = request.getfixturevalue(name)
    parent = nn.ModuleList([module]).train()
    assert parent.training and not any(part.training for part in module.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_convnext_distance_is_that_of_the_prepared_logits(convnext: ConvNextLogits) -> None:
    x, y = images(1, 40, 40), images(1, 40, 40, seed=1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def logits(image: Tensor) -> Tensor:
        resized = F.interpolate(image, (224, 224), mode="bilinear", antialias=True)
        return convnext.network((resized - mean[:, None, None]) / std[:, None, None])

    torch.testing.assert_close(convnext(x, y), F.mse_loss(logits(x), logits(y))[None])
    assert float(convnext(x, x)) == 0.0


def test_networks_run_in_fp32_under_autocast(network: LPIPS) -> None:
    x, y = images(2), images(2, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network(x, y), network(x.double(), y.double()))
        assert network(x.bfloat16(), y).dtype == torch.float32


# Weights of the helping networks.


def test_lpips_reads_published_files(network: LPIPS, tmp_path: Path) -> None:
    vgg = {
        f"features.{key.split('.', 2)[2]}": value
        for key, value in network.state_dict().items()
        if key.startswith("slices.")
    }
    vgg["classifier.0.bias"] = torch.zeros(4)  # of the classifier, which LPIPS does not have
    torch.save(vgg, tmp_path / "vgg16.pth")
    heads = {f"lin{i}.model.1.weight": head.detach()[None, :, None, None] for i, head in enumerate(network.heads)}
    torch.save(heads, tmp_path / "heads.pth")
    again = LPIPS.pretrained(vgg=tmp_path / "vgg16.pth", heads=tmp_path / "heads.pth", download=False)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in again.state_dict().items())
    assert not any(parameter.requires_grad for parameter in again.parameters())

    del vgg["features.5.weight"]
    torch.save(vgg, tmp_path / "vgg16.pth")
    with pytest.raises(CheckpointError, match=r"VGG16.*vgg16\.pth holds other weights:\n.*1 missing: 5\.weight"):
        LPIPS.pretrained(vgg=tmp_path / "vgg16.pth", heads=tmp_path / "heads.pth")
    torch.save({"lin0.model.1.weight": torch.zeros(1, 64, 1, 1)}, tmp_path / "heads.pth")
    (tmp_path / "torn.pth").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"torn\.pth"):
        LPIPS.pretrained(vgg=tmp_path / "torn.pth", heads=tmp_path / "heads.pth")


def test_missing_weights_say_where_to_put_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lpips")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(
        CheckpointError, match=r"VGG16.*not on this machine; put .*vgg16-397923af\.pth at .*checkpoints"
    ):
        LPIPS.pretrained()
    with pytest.raises(CheckpointError, match=r"ConvNeXt-S.*not on this machine; put .*convnext_small"):
        ConvNextLogits.pretrained()
    with pytest.raises(CheckpointError, match=r"ConvNeXt-S: there is no weights file .*nowhere\.pth"):
        ConvNextLogits.pretrained(weights=tmp_path / "nowhere.pth")


@pytest.mark.parametrize("error", [OSError("no route"), RuntimeError("invalid hash value")])
def test_failed_downloads_are_explained(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def fail(url: str, target: str, **options: Any) -> None:
        asked.update(options, url=url)
        raise error

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(CheckpointError, match=f"cannot be fetched.*{error}.*put the file at"):
        ConvNextLogits.pretrained()
    assert asked["hash_prefix"] == "0c510722" and asked["url"].endswith("convnext_small-0c510722.pth")


# The named mixture.


def test_specs_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Constant(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.full((len(x),), self.value)

    monkeypatch.setattr("vistok.losses.perceptual.LPIPS", lambda: Constant(1.0))
    monkeypatch.setattr("vistok.losses.perceptual.ConvNextLogits", lambda: Constant(5.0))

    def value(spec: str) -> float:
        return float(PerceptualLoss(spec, pretrained=False)(images(3), images(3)))

    assert (value("lpips"), value("convnext_s")) == (1.0, 5.0)
    assert value("lpips-convnext_s-1.0-0.1") == pytest.approx((1.0 + 0.5) / 1.1)
    assert value("lpips-convnext_s-3-1") == pytest.approx(2.0)
    assert value("lpips-convnext_s-0-2") == pytest.approx(5.0)


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "vgg",
        "LPIPS",
        "lpips-convnext_s",
        "lpips-convnext_s-1",
        "lpips-convnext_s-1-x",
        "convnext_s-lpips-1-1",
        "lpips-convnext_s-0-0",
        "lpips-convnext_s-nan-1",
        "lpips-convnext_s-inf-1",
        "lpips-convnext_s-1-2-3",
    ],
)
def test_wrong_specs_are_explained(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"as in lpips-convnext_s-1\.0-0\.1; got"):
        PerceptualLoss(spec, pretrained=False)


# The adversary.


def test_hinge_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 3.0])
    # max(0, 1 - real) = 0, 0.5, 2; max(0, 1 + fake) = 0, 1, 4
    assert float(hinge_discriminator_loss(real, fake)) == pytest.approx(0.5 * (2.5 / 3 + 5.0 / 3))
    assert float(hinge_discriminator_loss(torch.tensor([1.0]), torch.tensor([-1.0]))) == 0.0


def test_lecam_by_hand() -> None:
    lecam = LeCam(decay=0.9)
    real, fake = torch.tensor([[3.0, 1.0]], requires_grad=True), torch.tensor([[-1.0, -3.0]], requires_grad=True)
    # Averages start at 0: relu(2 - 0)^2 + relu(0 - (-2))^2
    first = lecam(real, fake)
    assert first.shape == (1,) and first.item() == pytest.approx(8.0)
    assert (float(lecam.mean_real), float(lecam.mean_fake)) == pytest.approx((0.2, -0.2))
    # relu(2 + 0.2)^2 + relu(0.2 + 2)^2, with the averages as they were before this call
    second = lecam(real, fake)
    assert second.item() == pytest.approx(2 * 2.2**2, rel=1e-6)
    second.sum().backward()
    assert torch.allclose(real.grad, torch.full((1, 2), 2.2)) and torch.allclose(fake.grad, torch.full((1, 2), -2.2))
    assert (float(lecam.mean_real), float(lecam.mean_fake)) == pytest.approx((0.38, -0.38))
    assert not lecam.mean_real.requires_grad and set(lecam.state_dict()) == {"mean_real", "mean_fake"}


def test_lecam_is_zero_on_the_right_side_of_the_averages() -> None:
    lecam = LeCam()
    lecam.mean_real.fill_(-1.0)
    lecam.mean_fake.fill_(1.0)
    assert float(lecam(torch.zeros(4), torch.zeros(4))) == 0.0


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (5, 8), (1, 3), (2, 1), (16, 9), (31, 33)])
def test_blur_halves_any_size_as_tensorflow_pads(size: tuple[int, int]) -> None:
    height, width = size
    x = torch.randn(2, 3, height, width)
    out = BlurDownsample()(x)
    assert out.shape == (2, 3, math.ceil(height / 2), math.ceil(width / 2))
    # By hand: SAME puts the smaller half of the padding first.
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    pads = [max((math.ceil(n / 2) - 1) * 2 + 4 - n, 0) for n in size]
    padded = torch.zeros(2, 3, height + pads[0], width + pads[1])
    padded[:, :, pads[0] // 2 : pads[0] // 2 + height, pads[1] // 2 : pads[1] // 2 + width] = x
    wanted = torch.zeros_like(out)
    for i in range(out.shape[2]):
        for j in range(out.shape[3]):
            window = padded[:, :, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4]
            wanted[:, :, i, j] = torch.einsum("bchw,h,w->bc", window, taps, taps)
    torch.testing.assert_close(out, wanted)


def test_blur_keeps_channels_apart_and_constants() -> None:
    x = torch.zeros(1, 2, 16, 16)
    x[:, 1] = 1.0
    out = BlurDownsample()(x)
    assert not out[:, 0].any() and torch.allclose(out[:, 1, 1:-1, 1:-1], torch.ones(6, 6))


@pytest.mark.parametrize("size", [64, 47, 256])
def test_discriminator_gives_a_map_of_16_by_16(size: int) -> None:
    discriminator = PatchDiscriminator(base_channels=32, num_stages=2)
    logits = discriminator(images(1, size, size))
    assert logits.shape == (1, 1, 16, 16)
    logits.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in discriminator.parameters())


# All terms together.


def make_loss(network: LPIPS | None = None, **options: Any) -> TokenizerLoss:
    """The loss with a small discriminator, and with the shared LPIPS where one is given."""
    torch.manual_seed(0)
    loss = TokenizerLoss(TokenizerLossConfig(**{"pretrained": False, **options}))
    if loss.discriminator is not None:
        loss.discriminator = PatchDiscriminator(base_channels=32, num_stages=1)
    if network is not None:
        loss.config = replace(loss.config, perceptual="lpips", perceptual_weight=0.7)
        perceptual = PerceptualLoss.__new__(PerceptualLoss)
        nn.Module.__init__(perceptual)
        perceptual.weights, perceptual.networks = {"lpips": 1.0}, nn.ModuleDict({"lpips": network})
        loss.perceptual = perceptual
    return loss.train()


def outputs(reconstruction: Tensor, **more: Tensor) -> dict[str, Tensor]:
    return {
        "reconstruction": reconstruction,
        "ids": torch.zeros(len(reconstruction), 4, dtype=torch.int64),
        "loss_commitment": torch.tensor(0.25),
        "loss_codebook": torch.tensor(1.0),
        **more,
    }


def test_terms_sum_to_the_total(network: LPIPS) -> None:
    weights = {"reconstruction_weight": 2.0, "quantizer_weight": 0.5, "kl_weight": 0.1, "adversarial_weight": 0.3}
    loss = make_loss(network, **weights, reconstruction="l2+l1", logvar=0.5)
    x, z = images(2), images(2, seed=1)
    total, terms = loss.generator(outputs(z, kl=torch.rand(2, 4)), x, 0)
    counted = {key: value for key, value in terms.items() if key not in ("commitment", "codebook")}
    assert set(counted) == {"reconstruction", "perceptual", "adversarial", "quantizer", "kl"}
    torch.testing.assert_close(total, sum(counted.values()))
    pixel = F.mse_loss(z, x) + 0.2 * F.l1_loss(z, x)
    torch.testing.assert_close(terms["reconstruction"], 2.0 * pixel / math.exp(0.5))
    assert float(terms["quantizer"]) == pytest.approx(0.5 * 1.25)
    torch.testing.assert_close(terms["perceptual"], 0.7 * network(x, z).mean())
    torch.testing.assert_close(terms["adversarial"], -0.3 * loss.discriminator(z).mean())
    _, discrete = loss.generator(outputs(z), x, 0)  # the variance is a variational autoencoder's
    torch.testing.assert_close(discrete["reconstruction"], 2.0 * pixel)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("l2", F.mse_loss), ("l1", F.l1_loss), ("l2+l1", lambda z, x: F.mse_loss(z, x) + 0.2 * F.l1_loss(z, x))],
)
def test_pixel_terms(name: str, wanted: Any) -> None:
    x, z = images(2), images(2, seed=1)
    total, terms = make_loss(reconstruction=name).generator({"reconstruction": z}, x, 0)
    torch.testing.assert_close(terms["reconstruction"], wanted(z, x))
    assert set(terms) == {"reconstruction"} and torch.equal(total, terms["reconstruction"])


def test_kl_is_summed_over_latents_and_averaged_over_images() -> None:
    kl = torch.rand(3, 5)
    total, terms = make_loss(kl_weight=0.5).generator({"reconstruction": images(3), "kl": kl}, images(3), 0)
    torch.testing.assert_close(terms["kl"], 0.5 * kl.sum(dim=1).mean())
    torch.testing.assert_close(total, terms["kl"])


def test_stage_one_is_the_cross_entropy_of_the_codes() -> None:
    logits, codes = torch.randn(2, 9, 7), torch.randint(7, (2, 9))
    total, terms = make_loss(quantizer_weight=0.0).generator({"logits": logits}, images(2), 0, codes=codes)
    wanted = -logits.log_softmax(-1).gather(-1, codes[..., None]).mean()
    torch.testing.assert_close(terms["reconstruction"], wanted)
    torch.testing.assert_close(total, wanted)


def test_gradients_reach_the_reconstruction_and_no_helping_network(network: LPIPS) -> None:
    loss = make_loss(network, adversarial_weight=0.1)
    z = images(2, seed=1).requires_grad_()
    total, terms = loss.generator(outputs(z), images(2), 0)
    for name in ("reconstruction", "perceptual", "adversarial"):
        (gradient,) = torch.autograd.grad(terms[name], z, retain_graph=True)
        assert gradient.any() and torch.isfinite(gradient).all()
    total.backward()
    assert all(parameter.grad is None for parameter in loss.parameters())


def test_the_discriminator_can_be_trained_after_the_generator_term() -> None:
    loss = make_loss(adversarial_weight=0.1)
    loss.generator(outputs(images(2, seed=1)), images(2), 0)
    assert all(parameter.requires_grad for parameter in loss.discriminator.parameters())
    total, terms = loss.discriminate(loss.discriminator(images(2)), loss.discriminator(images(2, seed=1)))
    total.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in loss.discriminator.parameters())
    assert set(terms) == {"discriminator", "lecam", "logits_real", "logits_fake"}


def test_the_discriminators_loss_is_hinge_and_lecam() -> None:
    loss = make_loss(adversarial_weight=0.1, lecam_weight=0.5)
    real, fake = torch.tensor([[0.5]]), torch.tensor([[-2.0]])
    total, terms = loss.discriminate(real, fake)
    # hinge 0.5 (0.5 + 0); LeCam with averages at 0: 0.5^2 + 2^2
    assert float(terms["lecam"]) == pytest.approx(0.5 * 4.25) and float(total) == pytest.approx(0.25 + 0.5 * 4.25)
    assert (float(terms["logits_real"]), float(terms["logits_fake"])) == (0.5, -2.0)


def test_the_adversary_starts_when_it_is_told() -> None:
    loss = make_loss(adversarial_weight=0.1, adversarial_start=5)
    for step, on in ((0, False), (4, False), (5, True), (9, True)):
        _, terms = loss.generator(outputs(images(2, seed=1)), images(2), step)
        assert ("adversarial" in terms) == on == loss.adversary_is_on(step)
    alone = make_loss()
    assert alone.discriminator is None and alone.lecam is None and not alone.adversary_is_on(10**9)


def test_everything_is_fp32_under_autocast() -> None:
    loss = make_loss(adversarial_weight=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        total, terms = loss.generator(outputs(images(2, seed=1).bfloat16()), images(2), 0)
        assert {value.dtype for value in (total, *terms.values())} == {torch.float32}
        total, _ = loss.discriminate(torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.bfloat16))
        assert total.dtype == torch.float32


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"perceptual_weight": 1.0}, "perceptual_weight is set, and perceptual names no network"),
        ({"reconstruction": "l3"}, "`reconstruction` is one of l2, l1, l2\\+l1; got 'l3'"),
        ({"adversarial_weigth": 1.0}, "did you mean adversarial_weight"),
    ],
)
def test_wrong_loss_configurations(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(TokenizerLossConfig, config, where="loss")
