"""Both demos' whole chains in a few steps, and again from where they were."""

from __future__ import annotations

from pathlib import Path

import pytest

import vistok
from vistok.demo import run_demo, run_training_demo
from vistok.errors import DataError


def check_page(path: str, pictures: int, plots: int) -> None:
    page = Path(path).read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == pictures and page.count("<svg") == plots
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script" not in page


@pytest.mark.slow
def test_the_quick_demo_on_own_pictures(tmp_path: Path) -> None:
    source = vistok.open_source("photos:", split="val")
    (tmp_path / "mine").mkdir()
    for index in range(3):
        source.image(index).save(tmp_path / "mine" / f"{index}.png")
    result = run_demo(tmp_path / "out", pictures=[tmp_path / "mine"], quick=True)
    check_page(result["report"], pictures=7, plots=3)
    assert (tmp_path / "out" / "counts.png").is_file() and (tmp_path / "out" / "samples.png").is_file()
    counts = list(result["tokens"].values())
    assert counts == sorted(counts), "smaller errors take more tokens"
    assert result["scores"][4] >= result["scores"][1], "search finds what the verifier likes"
    with pytest.raises(DataError, match="nowhere"):
        run_demo(tmp_path / "out", pictures=[tmp_path / "nowhere.png"], quick=True)


@pytest.mark.slow
def test_the_quick_training_demo_writes_one_self_contained_page(tmp_path: Path) -> None:
    result = run_training_demo(tmp_path, quick=True)
    check_page(result["report"], pictures=5, plots=5)
    for name in ("samples_plain.png", "samples_best_of_n.png", "reconstructions_val.png", "reconstruction_32.json"):
        assert (tmp_path / name).is_file()
    facts = result["samples"]
    assert facts["best_of_n"]["log_likelihood"] >= facts["plain"]["log_likelihood"]
    quality = [entry["psnr"] for entry in result["metrics"]]
    assert quality == sorted(quality) and quality[-1] > 18.0, "more tokens show more, from the linear start on"
