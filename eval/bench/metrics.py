"""Feature extraction beside torch-fidelity's own, over the same folder of pictures and the same weights.

    python eval/bench/metrics.py                       # one CPU thread, 64 photographs at 256 pixels
    python eval/bench/metrics.py --device cuda --images 2000

Both read PNG files and give the 2,048 features of FID, which are compared; weights are random, as none are needed for a
time. torch-fidelity reads ahead by worker processes (its default would be 16 of them: here as many as ours). "speed" is
torch-fidelity / vistok in seconds of wall-clock time, taken in turns: above 1, vistok is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
from torch_fidelity import feature_extractor_inceptionv3 as fidelity
from torch_fidelity.utils import create_feature_extractor, extract_featuresdict_from_input_id

from vistok.data import load_images, open_source
from vistok.metrics.feature_set import FeatureWork
from vistok.metrics.features import create_extractor
from vistok.metrics.protocols import get_protocol
from vistok.report.grid import save_image


def _weights(folder: Path) -> Path:
    """Random weights in torch-fidelity's file format."""

    class Fresh(fidelity.FeatureExtractorInceptionV3):
        def load_state_dict(self, state: object) -> None:
            pass

    torch.save({}, folder / "empty.pth")
    torch.manual_seed(0)
    state = Fresh("fresh", ["2048"], feature_extractor_weights_path=str(folder / "empty.pth")).state_dict()
    torch.save(state, folder / "weights.pth")
    return folder / "weights.pth"


def _pictures(folder: Path, count: int, size: int) -> None:
    source = open_source("photos:", split="all")
    folder.mkdir()
    for number in range(count):
        image = load_images(source.image(number % len(source)), size=size)[0]
        save_image(image, folder / f"{number:06d}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    cuda = args.device.startswith("cuda")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = _weights(folder)
        _pictures(folder / "pictures", args.images, args.size)
        extractor = create_extractor("inception", weights=weights).to(args.device)
        work = FeatureWork(
            extractor,
            batch_size=args.batch_size,
            num_workers=args.workers,
            device=torch.device(args.device),
            progress=False,
        )
        options = {
            "input1": str(folder / "pictures"),
            "batch_size": args.batch_size,
            "cuda": cuda,
            "verbose": False,
            "cache": False,
            "save_cpu_ram": args.workers == 0,
            "feature_extractor_weights_path": str(weights),
        }
        theirs = create_feature_extractor("inception-v3-compat", ["2048"], **options)

        def ours_run() -> torch.Tensor:
            source = open_source(f"folder:{folder / 'pictures'}", split="all")
            return work.collect(source, "bench", protocol=get_protocol("torch-fidelity")).pooled

        def their_run() -> torch.Tensor:
            return extract_featuresdict_from_input_id(1, theirs, **options)["2048"].cpu()

        times: dict[str, list[float]] = {"vistok": [], "torch-fidelity": []}
        for repeat in range(args.repeats + 1):
            found = []
            for key, run in (("vistok", ours_run), ("torch-fidelity", their_run)):
                start = time.perf_counter()
                found.append(run())
                if repeat:  # the first one warms up
                    times[key].append(time.perf_counter() - start)
            torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
    medians = {key: statistics.median(values) for key, values in times.items()}
    result = {
        "speed": medians["torch-fidelity"] / medians["vistok"],
        "images_per_second": {key: args.images / value for key, value in medians.items()},
        "images": args.images,
        "device": args.device,
    }
    print(
        f"speed {result['speed']:.2f}; images/s: "
        + ", ".join(f"{k} {v:.1f}" for k, v in result["images_per_second"].items())
    )
    if args.json:
        args.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
