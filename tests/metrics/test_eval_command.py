"""The options of ``vistok eval recon`` and ``eval/reconstruction.py``."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest
from PIL import Image

import vistok
from vistok.errors import ConfigError
from vistok.metrics.command import add_reconstruction_arguments, run_reconstruction


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_reconstruction_arguments(parser)
    return parser.parse_args(arguments)


def test_folder_without_a_held_out_part_is_taken_whole(tmp_path) -> None:
    vistok.create_model("titok_tiny_32.emoji").save_pretrained(tmp_path / "model")
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        pixels = np.full((70, 90, 3), 80 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number}.png")
    shown: list[str] = []
    args = parse(
        *("--model", str(tmp_path / "model"), "--data", f"folder:{tmp_path / 'pictures'}"),
        *("--features", "none", "--no-lpips", "--json-file", str(tmp_path / "result.json")),
    )
    result = run_reconstruction(args, device="cpu", say=shown.append)
    assert (result["images"], result["data"]["split"]) == (3, "all")
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert len(shown) == 1 and "PSNR" in shown[0]


def test_protocol_is_checked_before_anything_is_loaded() -> None:
    args = parse("--model", "absent", "--data", "absent:", "--protocol", "titokk")
    with pytest.raises(ConfigError, match="did you mean titok"):
        run_reconstruction(args, device="cpu", say=print)
