"""Golden cases: the small ones of this repository always, all others where the full set is at hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from run_golden import run_case

SMALL = Path(__file__).parent / "golden"
CASES = sorted(path.parent for path in SMALL.rglob("case.json"))


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.relative_to(SMALL).as_posix())
def test_small_case_matches_the_recording(folder: Path) -> None:
    rows = run_case(folder)
    assert rows, "a case without rows checks nothing"
    problems = [f"{row.output}: {row.status} {row.max_abs_error} {row.note}" for row in rows if row.status != "pass"]
    assert not problems, problems


@pytest.mark.parametrize(
    "name",
    [
        *(f"titok/{name}" for name in ("s128-full", "maskgit-vqgan-full")),
        *(f"titok/loss-{name}" for name in ("stage2", "tatitok-vae", "tatitok-vq")),
        *(f"onedpiece/{name}" for name in ("s256-full", "loss-stage2")),
    ],
)
def test_full_case_matches_the_recording(name: str, golden_root: Path) -> None:
    rows = run_case(golden_root / name)
    assert rows and [row.output for row in rows if row.status != "pass"] == []


@pytest.mark.parametrize(("family", "count"), [("titok", 22), ("onedpiece", 3)])
def test_all_published_layouts_account_for_every_tensor(family: str, count: int, golden_root: Path) -> None:
    folders = sorted((golden_root / family / "layouts").iterdir())
    rows = [row for folder in folders for row in run_case(folder)]
    assert not [row.case for row in rows if row.status == "fail"]
    assert sum(row.status == "pass" for row in rows) >= count


@pytest.mark.parametrize("name", ["d18_d18_names", "d18_d28_dfn_names", "d18_d28_in1k_names", "vae_c4", "vae_c16"])
def test_flextok_layouts_and_autoencoders_match_the_recording(name: str, golden_root: Path) -> None:
    rows = run_case(golden_root / "flextok" / name)
    assert rows and [row.output for row in rows if row.status != "pass"] == []


@pytest.mark.parametrize("name", ["bl-names", "bl2d-names", "sb2d-names"])
def test_gigatok_layouts_match_the_recording(name: str, golden_root: Path) -> None:
    rows = run_case(golden_root / "gigatok" / name)
    assert rows and [row.output for row in rows if row.status != "pass"] == []


@pytest.mark.slow
def test_published_gigatok_matches_the_recording(golden_root: Path) -> None:
    rows = run_case(golden_root / "gigatok" / "ss-full")
    assert rows and [row.output for row in rows if row.status != "pass"] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["d12_d12_encode", "d12_d12_velocity", "d12_d12_detokenize"])
def test_published_flextok_matches_the_recording(name: str, golden_root: Path) -> None:
    rows = run_case(golden_root / "flextok" / name)
    assert rows and [row.output for row in rows if row.status != "pass"] == []
