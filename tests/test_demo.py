"""The demo's whole chain in a few steps, and again from where it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from vistok.demo import run_demo


@pytest.mark.slow
def test_the_quick_demo_writes_one_self_contained_page(tmp_path: Path) -> None:
    result = run_demo(tmp_path, quick=True)
    page = Path(result["report"]).read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 5 and page.count("<svg") == 5
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script" not in page
    for name in ("samples_plain.png", "samples_best_of_n.png", "reconstructions_val.png", "reconstruction_32.json"):
        assert (tmp_path / name).is_file()
    facts = result["samples"]
    assert facts["best_of_n"]["log_likelihood"] >= facts["plain"]["log_likelihood"]
    quality = [entry["psnr"] for entry in result["metrics"]]
    assert quality == sorted(quality) and quality[-1] > 18.0, "more tokens show more, from the linear start on"
