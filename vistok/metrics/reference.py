"""Files that samples are compared with, as pytorch-fid, clean-fid and ADM read and write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from vistok.data.sources import ImageSource
from vistok.data.transforms import check_names, crop_image
from vistok.errors import CheckpointError, DataError
from vistok.files import whole_file
from vistok.metrics.feature_set import FeatureWork, evenly_spaced
from vistok.metrics.instruments import Instruments
from vistok.metrics.protocols import Protocol


def write_reference(
    source: ImageSource,
    path: str | Path,
    *,
    protocol: Protocol,
    work: FeatureWork,
    found: Instruments,
    size: int | None = None,
    limit: int | None = None,
    images: bool = False,
) -> dict[str, Any]:
    """Write the statistics of pictures to an ``.npz``.

    ``mu`` [D] and ``sigma`` [D, D], which pytorch-fid and clean-fid read; ``mu_s`` and ``sigma_s``, which ADM reads besides, where the
    network has a map of places; ``arr_0``, uint8 [N, H, W, 3], if asked for; and ``n``, ``features`` and ``made``, which say what it is.

    Args:
        source: the pictures.
        path: ends in ``.npz``.
        protocol: crop, interpolation, and how the network is fed.
        work: how features are made, and whether the work is shared.
        found: the network, for what the file says of itself.
        size: crop to this side; None takes pictures as they are.
        limit: take this many pictures, evenly spaced.
        images: also write the pictures, which precision, recall and KID need; they are kept in memory.
    Returns:
        What ``made`` says, and the number of ``images`` and ``skipped`` ones.
    Raises:
        DataError: pictures that cannot be read or are of different sizes; another ending.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise DataError(f"a reference is written to a file named *.npz, got {path}")
    check_names(protocol.crop, protocol.interpolation)
    places = evenly_spaced(len(source), limit)
    features = work.collect(source, "reference", places=places, size=size, protocol=protocol)
    stats = features.stats()
    made = {
        "protocol": protocol.name,
        "resize": protocol.resize,
        "crop": [protocol.crop, protocol.interpolation] if size is not None else None,
        "size": size,
        "source": source.spec,
        "listing_hash": source.listing_hash(),
        "weight_hash": (found.describe() or {}).get("weight_hash"),
    }
    if work.accelerator is None or work.accelerator.is_main_process:
        arrays: dict[str, Any] = {
            "mu": stats.mean.numpy(),
            "sigma": stats.covariance.numpy(),
            "n": np.int64(stats.n or 0),
        }
        if "spatial" in features.layers:
            spatial = features.stats("spatial")
            arrays |= {"mu_s": spatial.mean.numpy(), "sigma_s": spatial.covariance.numpy()}
        if images:
            skipped = set(features.skipped)
            kept = [place for place in places if source.name(place) not in skipped]
            arrays["arr_0"] = np.stack([_pixels(source, place, size, protocol) for place in kept])
        with whole_file(path) as file:
            np.savez(file, features=np.array(features.features), made=np.array(json.dumps(made)), **arrays)
    return made | {"images": len(features), "skipped": list(features.skipped)}


def read_made(path: Path) -> dict[str, Any]:
    """What a file of ``write_reference`` says of itself; {} for others'."""
    with np.load(path, allow_pickle=False) as file:
        if "made" not in file.files:
            return {}
        try:
            made = json.loads(str(file["made"]))
        except ValueError as error:
            raise DataError(f"{path} does not say how it was made: {error}") from error
    return made if isinstance(made, dict) else {}


def find_network(found: Instruments) -> Any:
    """The extractor.

    Raises:
        CheckpointError: there is none.
    """
    if found.extractor is None:
        raise CheckpointError(f"there are no features to measure with: {found.left_out['fid']}")
    return found.extractor


def _pixels(source: ImageSource, place: int, size: int | None, protocol: Protocol) -> np.ndarray:
    picture = source.image(place)
    if size is not None:
        picture = crop_image(picture, size, crop=protocol.crop, interpolation=protocol.interpolation)
    return np.asarray(picture)
