"""Tiny models and odd pictures for the commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import smooth
from PIL import Image
from tiny_models import make


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders ``ordered``, ``fixed``, ``continuous`` and ``text`` with tiny models that tell pictures apart."""
    root = tmp_path_factory.mktemp("models")
    kinds = {"ordered": "fsq_ordered", "fixed": "vq_pixels", "continuous": "gaussian", "text": "vq_text"}
    for folder, kind in kinds.items():
        model = make(kind)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.startswith(("encoder.", "to_latents", "quantizer.codebook")) and parameter.ndim > 1:
                    parameter.mul_(6.0)
        model.save_pretrained(root / folder)
    return root


@pytest.fixture
def work(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with pictures of all sorts; the models are in ``models``."""
    monkeypatch.chdir(tmp_path)
    pixels = smooth(37, 53)
    Image.fromarray(pixels).save("odd.png")
    Image.fromarray(smooth(1, 200)).save("line.png")
    Image.fromarray(smooth(64, 64)).convert("L").save("grey.jpg")
    Image.fromarray(smooth(40, 40)).convert("P").save("palette.gif")
    rgba = np.dstack([smooth(20, 31), np.tile(np.linspace(0, 255, 31), (20, 1)).astype(np.uint8)])
    Image.fromarray(rgba).save("alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be seen, the picture is turned right by a quarter
    Image.fromarray(np.rot90(pixels)).save("turned.png", exif=exif)
    (tmp_path / "corrupt.png").write_bytes(Path("odd.png").read_bytes()[:300])
    (tmp_path / "words.png").write_text("not a picture")
    (tmp_path / "empty").mkdir()
    return tmp_path
