"""The Inception network at every layer, and every way to its size, against the libraries that they are from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vistok.metrics.features import create_extractor
from vistok.metrics.inception import InceptionFeatures
from vistok.metrics.resize import RESIZES

fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that follow from a rule, so that activations neither die nor explode."""

    class Fresh(fidelity.FeatureExtractorInceptionV3):
        def load_state_dict(self, state):
            pass

    folder = tmp_path_factory.mktemp("inception")
    torch.save({}, folder / "empty.pth")
    state = Fresh("fresh", ["2048"], feature_extractor_weights_path=str(folder / "empty.pth")).state_dict()
    generator = torch.Generator().manual_seed(1)
    for name, tensor in state.items():
        if name.endswith("running_var"):
            tensor.copy_(0.05 + torch.rand(tensor.shape, generator=generator))
        elif tensor.is_floating_point() and tensor.ndim > 1:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (1.5 / tensor[0].numel() ** 0.5))
    torch.save(state, folder / "weights.pth")
    return folder / "weights.pth"


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """Two photographs of different sizes than the network's, 8-bit."""
    import vistok

    source = vistok.open_source("photos:", split="val")
    images = vistok.load_images([source.image(0), source.image(6)], size=150)
    return (images * 255).round().to(torch.uint8)


def test_every_layer_is_torch_fidelitys(weights: Path, pictures: torch.Tensor) -> None:
    names = list(fidelity.FeatureExtractorInceptionV3.get_provided_features_list())
    official = fidelity.FeatureExtractorInceptionV3("x", names, feature_extractor_weights_path=str(weights)).eval()
    expected = dict(zip(names, official(pictures), strict=True))
    ours = create_extractor("inception", weights=weights)
    seen = {}
    hooks = {"MaxPool_1": "64", "MaxPool_2": "192", "Mixed_6e": "768"}
    for module, name in hooks.items():
        getattr(ours.network, module).register_forward_hook(
            lambda _, __, out, name=name: seen.update({name: out.mean(dim=(2, 3))})
        )
    with torch.no_grad():
        found = ours.every(pictures / 255)
    seen |= {"2048": found["pooled"], "logits_unbiased": found["logits"]}
    seen["logits"] = found["logits"] + ours.network.fc.bias
    assert seen.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(seen[name], values, rtol=1e-5, atol=1e-5)
    assert found["spatial"].shape == (2, 7 * 17 * 17)
    with torch.no_grad():
        before = {}
        official.Mixed_6d.register_forward_pre_hook(lambda _, args: before.update(x=args[0]))
        official(pictures)
        branch = official.Mixed_6d.branch1x1(before["x"])[:, :7]
    torch.testing.assert_close(found["spatial"], branch.flatten(1), rtol=1e-5, atol=1e-5)


def test_the_resize_of_torch_fidelity(pictures: torch.Tensor) -> None:
    theirs = fidelity.interpolate_bilinear_2d_like_tensorflow1x(pictures.float(), size=(299, 299), align_corners=False)
    assert torch.equal(RESIZES["tf1_bilinear"](pictures.float(), 299), theirs)


def test_the_resize_of_pytorch_fid(pictures: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its network's first layer sees."""
    theirs = pytest.importorskip("pytorch_fid.inception", reason="pytorch-fid is not installed")
    monkeypatch.setattr(theirs, "fid_inception_v3", lambda: theirs._inception_v3(init_weights=False))
    network = theirs.InceptionV3([0]).eval()
    seen = {}
    network.blocks[0].register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    with torch.no_grad():
        network(pictures.float() / 255)
    ours = RESIZES["bilinear"](pictures.float(), 299) / 127.5 - 1
    torch.testing.assert_close(ours, seen["x"], rtol=0, atol=1e-6)


def test_the_resize_of_clean_fid(pictures: torch.Tensor) -> None:
    resize = pytest.importorskip("cleanfid.resize", reason="clean-fid is not installed")
    function = resize.build_resizer("clean")
    expected = np.stack([function(picture.permute(1, 2, 0).numpy()) for picture in pictures])
    ours = RESIZES["pil_bicubic"](pictures.float(), 299)
    torch.testing.assert_close(ours.permute(0, 2, 3, 1), torch.from_numpy(expected), rtol=0, atol=1e-4)
    # And it is Pillow's own, plane by plane.
    picture = Image.fromarray(pictures[0, 0].numpy().astype(np.float32))
    plane = np.asarray(picture.resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255)
    assert torch.allclose(ours[0, 0], torch.from_numpy(plane), atol=1e-4)


def test_resizes_give_different_features(weights: Path, pictures: torch.Tensor) -> None:
    found = {name: InceptionFeatures(weights, name)(pictures / 255) for name in RESIZES}
    first = found["tf1_bilinear"]
    assert all(float((first - other).abs().max()) > 1e-3 for name, other in found.items() if name != "tf1_bilinear")
