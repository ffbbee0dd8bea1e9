"""How many tokens each picture needs: by halting, and by search."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import tiny_models
import torch

from vistok import create_model
from vistok.cli import main
from vistok.data import open_source
from vistok.errors import VistokError
from vistok.metrics.complexity import measure_complexity, rank_correlation
from vistok.models.base import Tokenizer
from vistok.report.complexity import complexity_picture, format_complexity


@pytest.fixture(scope="module")
def adaptive() -> Tokenizer:
    """A KARL as it starts from principal components of pictures."""
    torch.manual_seed(0)
    small = {"width": 32, "depth": 1, "num_heads": 2}
    changes = {"image_size": 32, "patch_size": 8, "num_tokens": 12, "budget": 12, "train_counts": [1, 12, 1]}
    model = create_model("karl_tiny_64.photos", encoder=small, decoder=small, **changes)
    model.fit_linear(tiny_models.pictures(60, seed=5))
    return model


@pytest.fixture(scope="module")
def ordered() -> Tokenizer:
    return tiny_models.make("fsq_linear")


def test_both_kinds_of_tokenizers_are_measured_and_sorted(adaptive: Tokenizer, ordered: Tokenizer) -> None:
    source = open_source("random:12")
    result = measure_complexity({"halt": adaptive, "cut": ordered}, source, errors=(0.05, 0.2), progress=False)
    json.dumps(result)
    assert [entry["how"] for entry in result["measurements"]] == ["halting", "halting", "search", "search"]
    assert [entry["decodes"] > 0 for entry in result["measurements"]] == [False, False, True, True]
    totals = [image["needs"][0]["tokens"] + image["needs"][1]["tokens"] for image in result["images"]]
    assert totals == sorted(totals) and len(totals) == 12
    for strict, lax in ((0, 1), (2, 3)):
        assert result["measurements"][strict]["tokens"] > result["measurements"][lax]["tokens"]
    for image in result["images"]:
        for need, entry in zip(image["needs"], result["measurements"], strict=True):
            assert need["reached"] == (need["error"] <= entry["wanted"])
    assert "rank correlation" in format_complexity(result)


def test_what_is_written_is_what_the_models_give(adaptive: Tokenizer, ordered: Tokenizer) -> None:
    source = open_source("random:5")
    result = measure_complexity({"cut": ordered}, source, errors=(0.1,), batch_size=2, progress=False)
    images = tiny_models_images(source, ordered)
    expected = ordered.encode(images, target=("mae", 0.1))
    by_index = sorted(result["images"], key=lambda image: image["index"])
    assert [image["needs"][0]["tokens"] for image in by_index] == expected.lengths.tolist()
    assert [image["needs"][0]["bits"] for image in by_index] == expected.bits().tolist()
    picture = complexity_picture(result, source, ordered, count=3)
    assert picture.width > 3 * 32


def tiny_models_images(source, model: Tokenizer) -> torch.Tensor:
    from vistok import load_images

    return load_images([source.image(index) for index in range(len(source))], like=model)


def test_an_adaptive_one_gives_flat_pictures_fewer_tokens_than_noise(adaptive: Tokenizer) -> None:
    generator = torch.Generator().manual_seed(0)
    flat = torch.rand(6, 3, 1, 1, generator=generator).expand(6, 3, 32, 32).contiguous()
    noise = torch.rand(6, 3, 32, 32, generator=generator)
    for error in (0.1, 0.14, 0.18):
        few, many = (adaptive.encode(images, target_error=error).lengths for images in (flat, noise))
        assert few.double().mean() < many.double().mean() and bool((many == 12).all())


def test_rank_correlation_is_spearmans() -> None:
    x = torch.tensor([1.0, 2.0, 2.0, 5.0, 9.0])
    assert rank_correlation(x, x**3) == pytest.approx(1.0)
    assert rank_correlation(x, -x) == pytest.approx(-1.0)
    assert rank_correlation(x, torch.ones(5)) is None
    scipy = pytest.importorskip("scipy.stats")
    values = torch.randint(0, 6, (40, 2), generator=torch.Generator().manual_seed(0)).double()
    ours = rank_correlation(values[:, 0], values[:, 1])
    assert ours == pytest.approx(scipy.spearmanr(values[:, 0], values[:, 1]).statistic, abs=1e-9)


def test_what_cannot_be_measured_is_refused(adaptive: Tokenizer, ordered: Tokenizer) -> None:
    source = open_source("random:3")
    with pytest.raises(VistokError, match="as many tokens as any other"):
        measure_complexity({"fixed": tiny_models.make("vq_pixels")}, source)
    with pytest.raises(VistokError, match="between 0 and 1"):
        measure_complexity({"cut": ordered}, source, errors=(0.1, 2.0))
    with pytest.raises(VistokError, match="one image size"):
        measure_complexity({"cut": ordered, "large": create_model("karl_tiny_64.photos")}, source)
    with pytest.raises(VistokError, match="got none"):
        measure_complexity({}, source)


def test_the_command_sorts_a_folder_and_writes_page_list_and_picture(
    adaptive: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adaptive.save_pretrained(tmp_path / "model")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    source = open_source("random:4")
    for index in range(4):
        source.image(index).save(pictures / f"{index}.png")
    (pictures / "broken.png").write_bytes(b"not a picture")
    out = tmp_path / "out"
    command = ["complexity", str(pictures), "--model", f"karl={tmp_path / 'model'}", "--target-error", "0.08,0.2"]
    assert main([*command, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "halting" in said and "unreadable: 1" in said
    assert sorted(path.name for path in out.iterdir()) == [f"complexity.{s}" for s in ("csv", "html", "json", "png")]
    with (out / "complexity.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and "karl@0.08 tokens" in rows[0]
    assert "How many tokens" in (out / "complexity.html").read_text()
    assert main(["complexity", str(pictures), "--model", str(tmp_path / "model"), "--target-error", "much"]) == 2
    assert "--target-error takes numbers" in capsys.readouterr().err
