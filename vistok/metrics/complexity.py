"""How many tokens an image needs: adaptive tokenizers say so in one pass, ordered ones by a search.

An image's complexity under a tokenizer is the number of tokens with which it is decoded within a mean absolute error. KARL
(arXiv:2507.07995) reads it as an estimate of the length of the shortest program that prints the image.
"""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vistok.data.sources import ImageSource
from vistok.data.transforms import check_names, to_uint8
from vistok.errors import DataError, VistokError
from vistok.metrics.pictures import PictureBatches, shared_image_size
from vistok.metrics.pixel import psnr
from vistok.metrics.protocols import Protocol, get_protocol
from vistok.metrics.result import describe_run
from vistok.models.target import find_lengths, mean_absolute_error
from vistok.token_layout import TokenLayout
from vistok.tokens import Tokens

if TYPE_CHECKING:
    from vistok.models.base import Tokenizer

DEFAULT_ERRORS = (0.05, 0.1)
_LISTED = 100
_MAX_PSNR = 100.0  # of an image that comes back exactly


@dataclass(frozen=True)
class _Encoded:
    """A batch encoded for a wanted error; ``decodes``: how often it was decoded to find its lengths."""

    tokens: Tokens
    seconds: float
    decodes: int


def measure_complexity(
    tokenizers: Mapping[str, Tokenizer],
    source: ImageSource,
    *,
    errors: Sequence[float] = DEFAULT_ERRORS,
    protocol: str | Protocol = "titok",
    batch_size: int = 16,
    limit: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Tokens and bits that each image needs, and what finding them costs.

    Args:
        tokenizers: adaptive or ordered ones, by the names that the result gives them; all of one image size.
        source: the pictures; see ``vistok.data.open_source``.
        errors: wanted mean absolute errors, of values in [0, 1].
        protocol: crop and interpolation; a name of ``list_protocols()``, or a Protocol.
        batch_size: images at a time.
        limit: take this many pictures, evenly spaced over the source; None takes all.
        progress: show bars.
    Returns:
        What JSON can hold. ``images``, from simple to complex: ``name``, ``index``, ``png_bytes`` (a complexity without
        a model), and ``needs``: a list of ``tokens``, ``bits``, ``stored_bytes``, ``error``, ``psnr`` and ``reached``, one
        for each of ``measurements``: ``tokenizer``, ``wanted`` error, ``how`` (``halting`` in one pass, or ``search``), means
        over images, ``reached`` (their share), ``seconds`` of encoding and ``decodes`` an image, and ``rank_correlation``
        with the order of the images.
        The order is that of the first tokenizer: its tokens over all errors, then its error.
    Raises:
        VistokError: a tokenizer of fixed length, tokenizers of different sizes, errors that are none.
        DataError: no picture can be read.
    """
    started = time.perf_counter()
    protocol = get_protocol(protocol)
    check_names(protocol.crop, protocol.interpolation)
    wanted = _checked_errors(errors)
    size = shared_image_size(tokenizers)
    _check_kinds(tokenizers)
    if not len(source):
        raise DataError(f"the source {source.spec!r} is empty")
    pictures = PictureBatches(source, size, protocol, batch_size=batch_size, limit=limit, progress=progress)
    columns, names, png = [], [], []
    for name, tokenizer in tokenizers.items():
        found, indices, sizes = _measure(name, tokenizer, pictures, wanted)
        columns += found
        names, png = indices, sizes
    first = columns[: len(wanted)]
    totals = torch.stack([column["tokens"] for column in first]).sum(dim=0).tolist()
    lost = torch.stack([column["error"] for column in first]).sum(dim=0).tolist()
    order = sorted(range(len(names)), key=lambda row: (totals[row], lost[row], names[row]))
    ranks = torch.empty(len(order), dtype=torch.float64)
    ranks[order] = torch.arange(len(order), dtype=torch.float64)
    images = [
        {
            "name": source.name(names[row]),
            "index": names[row],
            "png_bytes": png[row],
            "needs": [_needs(column, row) for column in columns],
        }
        for row in order
    ]
    return {
        "kind": "complexity",
        "data": {
            "spec": source.spec,
            "size": len(source),
            "limit": limit,
            "listing_hash": source.listing_hash(),
        },
        "protocol": dataclasses.asdict(protocol),
        "image_size": size,
        "measurements": [_summary(column, ranks) for column in columns],
        "png_rank_correlation": rank_correlation(torch.tensor(png, dtype=torch.float64), ranks),
        "images": images,
        "unreadable": len(pictures.unreadable),
        "unreadable_names": pictures.unreadable[:_LISTED],
        "batch_size": batch_size,
        **describe_run(next(iter(tokenizers.values())).device, ("pillow",)),
        "seconds": time.perf_counter() - started,
    }


def rank_correlation(x: Tensor, y: Tensor) -> float | None:
    """Spearman's: the correlation of ranks, equal values sharing theirs; None where either has one value only."""
    first, second = (_ranks(values.double()) for values in (x, y))
    first, second = first - first.mean(), second - second.mean()
    scale = float(first.norm() * second.norm())
    return float(first @ second) / scale if scale > 0 else None


def _ranks(values: Tensor) -> Tensor:
    smaller = (values[None] < values[:, None]).sum(dim=1)
    equal = (values[None] == values[:, None]).sum(dim=1)
    return smaller + (equal - 1).double() / 2


def _checked_errors(errors: Sequence[float]) -> list[float]:
    values = [float(error) for error in errors]
    if not values or not all(0.0 < value < 1.0 for value in values) or len(set(values)) < len(values):
        raise VistokError(
            f"errors are different mean absolute errors between 0 and 1, as 0.05 and 0.1; got {list(errors)}"
        )
    return values


def _check_kinds(tokenizers: Mapping[str, Tokenizer]) -> None:
    fixed = [name for name, tokenizer in tokenizers.items() if not (tokenizer.adaptive or tokenizer.ordered)]
    if fixed:
        raise VistokError(
            f"{', '.join(fixed)} gives every image as many tokens as any other; complexity takes adaptive tokenizers "
            "(KARL, ALIT) and ordered ones (One-D-Piece, FlexTok)"
        )
    captioned = [name for name, tokenizer in tokenizers.items() if tokenizer.conditional]
    if captioned:
        raise VistokError(f"{', '.join(captioned)} decodes with a text; complexity is that of the image alone")


def _measure(
    name: str, tokenizer: Tokenizer, pictures: PictureBatches, wanted: list[float]
) -> tuple[list[dict[str, Any]], list[int], list[int]]:
    """A column a wanted error; and of the pictures, their indices and bytes as PNG."""
    columns = [
        {
            "tokenizer": name,
            "model": tokenizer.name or tokenizer.family,
            "weight_hash": tokenizer.weight_hash(),
            "wanted": error,
            "how": "halting" if tokenizer.adaptive else "search",
            "seconds": 0.0,
            "decodes": 0.0,
        }
        for error in wanted
    ]
    parts: list[dict[str, list[Tensor]]] = [{} for _ in wanted]
    indices: list[int] = []
    png: list[int] = []
    for read, images in pictures(name):
        indices += read
        png += [_png_bytes(image) for image in images]
        images = images.to(tokenizer.device)
        for error, column, part in zip(wanted, columns, parts, strict=True):
            encoded = _encode(tokenizer, images, error)
            column["seconds"] += encoded.seconds
            column["decodes"] += encoded.decodes * len(images)
            for key, values in _values(name, tokenizer, encoded.tokens, images, error).items():
                part.setdefault(key, []).append(values)
    for column, part in zip(columns, parts, strict=True):
        column |= {key: torch.cat(values) for key, values in part.items()}
        column["seconds"] /= len(indices)
        column["decodes"] /= len(indices)
    return columns, indices, png


def _encode(tokenizer: Tokenizer, images: Tensor, error: float) -> _Encoded:
    began = _now(tokenizer)
    if tokenizer.adaptive:
        tokens, decodes = tokenizer.encode(images, target_error=error), 0
    else:
        tokens = tokenizer.encode(images)
        found = find_lengths(tokenizer, images, tokens, ("mae", error))
        tokens, decodes = tokens.truncate(found.lengths), found.decodes
    return _Encoded(tokens, _now(tokenizer) - began, decodes)


def _now(tokenizer: Tokenizer) -> float:
    if tokenizer.device.type == "cuda":
        torch.cuda.synchronize(tokenizer.device)
    return time.perf_counter()


def _values(name: str, tokenizer: Tokenizer, tokens: Tokens, images: Tensor, error: float) -> dict[str, Tensor]:
    decoded = tokenizer.decode(tokens).float()
    if not decoded.isfinite().all():
        raise VistokError(f"{name} decodes NaN or infinity; look at its weights")
    lost = mean_absolute_error(decoded, images).cpu().double()
    stored = TokenLayout.of(tokens).record_bytes(tokens.lengths.tolist())
    return {
        "tokens": tokens.lengths.cpu().double(),
        "bits": tokens.bits().cpu().double(),
        "stored_bytes": torch.tensor(stored, dtype=torch.float64),
        "error": lost,
        "psnr": psnr(decoded, images).clamp(max=_MAX_PSNR).cpu().double(),
        "reached": (lost <= error).double(),
    }


def _needs(column: dict[str, Any], row: int) -> dict[str, Any]:
    out: dict[str, Any] = {key: int(column[key][row]) for key in ("tokens", "bits", "stored_bytes")}
    out |= {key: float(column[key][row]) for key in ("error", "psnr")}
    return out | {"reached": bool(column["reached"][row])}


def _summary(column: dict[str, Any], ranks: Tensor) -> dict[str, Any]:
    means = {key: float(value.mean()) for key, value in column.items() if isinstance(value, Tensor)}
    tokens = column["tokens"]
    spread = {
        "tokens_sd": float(tokens.std(correction=0)),
        "tokens_least": int(tokens.min()),
        "tokens_most": int(tokens.max()),
        "rank_correlation": rank_correlation(tokens, ranks),
    }
    return {key: value for key, value in column.items() if not isinstance(value, Tensor)} | means | spread


def _png_bytes(image: Tensor) -> int:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(to_uint8(image).permute(1, 2, 0).numpy()).save(buffer, format="PNG", optimize=True)
    return buffer.tell()
