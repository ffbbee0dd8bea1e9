"""How much crop, resize and rounding alone move a distance, on the embedded photographs: the table of docs/evaluation.md.

    python eval/protocol_effects.py                       # all 228 photographs: about five minutes on one core
    python eval/protocol_effects.py --limit 20 --json effects.json

The samples are the photographs, coded and decoded by vistok_ordered (256 tokens of 64 pixels). One thing is changed at a time; the
model, the pictures and the network (EfficientNet-lite0, as a stand-in for Inception that needs no download) stay.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from vistok.data import load_images, open_source
from vistok.data.transforms import crop_image, to_tensor
from vistok.hub import from_pretrained
from vistok.metrics.features import create_extractor
from vistok.metrics.frechet import FeatureStats, frechet_distance
from vistok.metrics.protocols import get_protocol
from vistok.metrics.result import save_result
from vistok.report.table import text_table

_BASE = {"crop": "center", "interpolation": "bicubic", "resize": "tf1_bilinear"}
_CHANGES = (
    ("as torch-fidelity does", {}, {}),
    ("crop: arc instead of center (both sets)", {"crop": "arc"}, {}),
    ("crop: arc for the reference only", {}, {"crop": "arc"}),
    ("crop: bilinear instead of bicubic (reference only)", {}, {"interpolation": "bilinear"}),
    ("resize: pytorch-fid's", {"resize": "bilinear"}, {}),
    ("resize: clean-fid's", {"resize": "pil_bicubic"}, {}),
    ("no rounding to 8 bits", {"eight_bit": False}, {}),
    ("the samples as JPEG, quality 95", {"jpeg": 95}, {}),
    ("half of the images", {"half": True}, {}),
)


@torch.no_grad()
def _stats(images: torch.Tensor, resize: str) -> FeatureStats:
    extractor = create_extractor("lite0", resize=resize)
    stats = FeatureStats(extractor.dims)
    for part in images.split(32):
        stats.update(extractor(part))
    return stats


def _pictures(crop: str, interpolation: str, size: int, limit: int | None) -> torch.Tensor:
    source = open_source("photos:", split="all")
    count = len(source) if limit is None else min(limit, len(source))
    cropped = [crop_image(source.image(i), size, crop=crop, interpolation=interpolation) for i in range(count)]
    return torch.stack([to_tensor(picture) for picture in cropped])


def _as_jpeg(images: torch.Tensor, quality: int) -> torch.Tensor:
    from vistok.report.grid import to_image

    with tempfile.TemporaryDirectory() as folder:
        files = []
        for number, image in enumerate(images):
            files.append(Path(folder) / f"{number}.jpg")
            to_image(image).save(files[-1], quality=quality)
        return load_images(files, size=images.shape[-1])


@torch.no_grad()
def measure(limit: int | None = None) -> list[dict[str, object]]:
    """A row for each change, on the first ``limit`` photographs."""
    model = from_pretrained("vistok_ordered")
    assert get_protocol("torch-fidelity").resize == _BASE["resize"]
    rows, first = [], 0.0
    for name, both, reference_only in _CHANGES:
        own = _BASE | {key: value for key, value in both.items() if key in _BASE}
        theirs = own | reference_only
        originals = _pictures(own["crop"], own["interpolation"], model.image_size, limit)
        decoded = torch.cat([model.decode(model.encode(part)).clamp(0, 1) for part in originals.split(32)])
        if both.get("eight_bit", True):
            decoded = (decoded * 255).round() / 255
        if "jpeg" in both:
            decoded = _as_jpeg(decoded, int(both["jpeg"]))
        reference = _pictures(theirs["crop"], theirs["interpolation"], model.image_size, limit)
        if both.get("half"):
            decoded, reference = decoded[::2], reference[::2]
        value = frechet_distance(_stats(decoded, own["resize"]), _stats(reference, theirs["resize"]))
        first = first or value
        rows.append({"change": name, "fd_lite0": value, "percent": 100.0 * (value / first - 1.0)})
        print(f"{name}: {value:.3f}", file=sys.stderr, flush=True)
    return rows


def main() -> int:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, help="this many photographs (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file too")
    args = parser.parse_args()
    if args.limit is not None and args.limit < 4:
        parser.error("a distance wants four photographs or more, two when they are halved")
    found = measure(args.limit)
    cells = [[str(row["change"]), f"{row['fd_lite0']:.2f}", f"{round(row['percent'], 1) + 0.0:+.1f}%"] for row in found]
    print(text_table(["what is changed", "fd_lite0", ""], cells))
    if args.json is not None:
        save_result({"limit": args.limit, "rows": found}, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
