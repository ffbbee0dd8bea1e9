"""Linear probes: exact on what is linear, chance on noise, optimal where it can be checked, refusals, and the script."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_models import make

from vistok.errors import VistokError
from vistok.metrics.probe import evaluate_probe, fit_linear_probe
from vistok.models.gigatok import GigaTok, GigaTokConfig
from vistok.models.titok import TransformerSize

SIZE = TransformerSize(32, 1, 2)
CONFIG = GigaTokConfig(
    image_size=16,
    base_channels=32,
    multipliers=(1, 1),
    decoder_multipliers=(1, 1),
    num_blocks=1,
    map_channels=8,
    encoder=SIZE,
    decoder=SIZE,
    num_tokens=4,
    codebook_size=16,
    code_dim=4,
    repa_depth=1,
    usage_window=0,
)


def test_what_is_linear_is_read_off_whatever_its_scale() -> None:
    features = torch.randn(600, 5) * torch.tensor([1e-3, 1.0, 10.0, 1.0, 1e3]) + 50.0
    labels = (features[:, 0] * 1e3 + features[:, 2] / 10.0).argsort().argsort() // 200
    probe = fit_linear_probe(features[:400], labels[:400], num_classes=3, weight_decay=1e-5)
    assert probe.accuracy(features[400:], labels[400:]) > 0.95


def test_noise_is_at_chance() -> None:
    features, labels = torch.randn(4000, 4), torch.arange(4000) % 4
    probe = fit_linear_probe(features[:2000], labels[:2000], num_classes=4)
    assert abs(probe.accuracy(features[2000:], labels[2000:]) - 0.25) < 0.05


def test_the_fit_is_the_minimum() -> None:
    features, labels = torch.randn(200, 6), torch.randint(3, (200,))
    probe = fit_linear_probe(features, labels, num_classes=3, weight_decay=0.01)
    weight = probe.weight.clone().requires_grad_()
    probe.weight = weight
    loss = F.cross_entropy(probe.logits(features), labels) + 0.005 * weight[:, :-1].square().sum()
    loss.backward()
    assert float(weight.grad.abs().max()) < 1e-3


def test_a_constant_feature_does_no_harm() -> None:
    features = torch.randn(100, 3)
    features[:, 1] = 7.0
    labels = (features[:, 0] > 0).long()
    assert fit_linear_probe(features, labels, num_classes=2).accuracy(features, labels) > 0.95


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_model_is_probed_on_both_splits(part: str) -> None:
    torch.manual_seed(0)
    model = GigaTok(CONFIG).eval()
    result = evaluate_probe(model, "photos:", part=part, limit=24, batch_size=7)
    assert result["data"]["train"]["images"] == 24 and 0.0 <= result["accuracy"] <= 1.0
    assert result["accuracy_train"] >= result["chance"] / 2 and result["probe"]["part"] == part
    again = evaluate_probe(model, "photos:", part=part, limit=24, batch_size=24)
    assert again["accuracy"] == result["accuracy"]
    json.dumps(result, allow_nan=False)


def test_what_cannot_be_probed_is_explained() -> None:
    with pytest.raises(VistokError, match="has no features to probe"):
        evaluate_probe(make("vq_pixels"), "photos:")
    with pytest.raises(VistokError, match="a probe is fitted to features"):
        fit_linear_probe(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), num_classes=2)
    with pytest.raises(VistokError, match="labels are from 0 to 1, got 0 to 2"):
        fit_linear_probe(torch.zeros(3, 3), torch.arange(3), num_classes=2)
    with pytest.raises(VistokError, match="not finite"):
        fit_linear_probe(torch.full((3, 3), float("nan")), torch.zeros(3, dtype=torch.long), num_classes=2)


def test_the_script(tmp_path: Path) -> None:
    torch.manual_seed(0)
    GigaTok(replace(CONFIG, layout="2d", num_tokens=64)).save_pretrained(tmp_path / "model")
    script = Path(__file__).parents[2] / "eval" / "probe.py"
    command = [sys.executable, script, "--model", tmp_path / "model", "--data", "photos:", "--limit", "8"]
    done = subprocess.run([*command, "--json-file", tmp_path / "probe.json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("accuracy 0") or done.stdout.startswith("accuracy 1")
    assert json.loads((tmp_path / "probe.json").read_text())["data"]["val"]["images"] == 8
    wrong = subprocess.run([*command, "--crop", "middle"], capture_output=True, text=True)
    assert wrong.returncode == 1 and "unknown crop 'middle'" in wrong.stderr
