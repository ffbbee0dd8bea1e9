"""Rate and distortion: quality against tokens and bytes, of tokenizers and of image codecs.

Bytes of a tokenizer are those of an image's record in a ``.vtk`` file: its packed tokens, length
and checks, without entropy coding, and without its share of the index (about six bytes). Bytes of a codec are those
of the whole file. What is needed to decode, a tokenizer's weights or a codec's library, is not counted.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from vistok.data.sources import ImageSource
from vistok.data.transforms import check_names
from vistok.errors import CheckpointError, ConfigError, DataError, MissingExtraError, VistokError
from vistok.losses.lite0_distance import Lite0Distance
from vistok.metrics.codecs import SCALES, CodecSearch, ImageCodec, find_codecs
from vistok.metrics.frechet import FeatureStats, frechet_distance
from vistok.metrics.instruments import Features, Instruments, gather_instruments
from vistok.metrics.pictures import PictureBatches, shared_image_size
from vistok.metrics.pixel import psnr, ssim
from vistok.metrics.protocols import Protocol, get_protocol
from vistok.metrics.reconstruction import Condition
from vistok.metrics.result import describe_run
from vistok.token_layout import TokenLayout

if TYPE_CHECKING:
    from vistok.models.base import Tokenizer

logger = logging.getLogger(__name__)

Perceptual = Literal["auto", "lpips", "lite0", "none"]
PERCEPTUAL = ("auto", "lpips", "lite0", "none")
DEFAULT_CODECS = ("jpeg", "webp", "avif")
DEFAULT_QUALITIES = (0, 10, 25, 50, 75, 90)
_SWEEP_SCALES = (1, 2, 4)  # of a codec's own curve
_MAX_PSNR = 100.0  # of an image that comes back exactly
_LISTED = 100


def default_lengths(tokenizer: Tokenizer) -> list[int]:
    """1, 2, 4, ... and all tokens where they are ordered; else all."""
    count = tokenizer.num_tokens
    return sorted({1 << power for power in range(count.bit_length())} | {count}) if tokenizer.ordered else [count]


def evaluate_curve(
    tokenizers: Mapping[str, Tokenizer],
    source: ImageSource,
    *,
    lengths: Sequence[int] | None = None,
    protocol: str | Protocol = "titok",
    batch_size: int = 16,
    limit: int | None = None,
    codecs: Sequence[str] = DEFAULT_CODECS,
    qualities: Sequence[int] = DEFAULT_QUALITIES,
    downscale: bool = True,
    features: Features = "none",
    weights: str | None = None,
    perceptual: Perceptual = "auto",
    download: bool = True,
    decode_options: Mapping[str, Any] | None = None,
    caption: str | None = None,
    text_encoder: Callable[[Sequence[str]], Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Quality against tokens and bytes.

    Args:
        tokenizers: by the names that the result gives them; all of one image size.
        source: the pictures; see ``vistok.data.open_source``.
        lengths: token counts, for ordered tokenizers (those above a tokenizer's own are left out); None takes 1, 2, 4,
            ... and all. Other tokenizers have one point.
        protocol: crop, interpolation and rounding; a name of ``list_protocols()``, or a Protocol.
        batch_size: images at a time.
        limit: take this many pictures, evenly spaced over the source; None takes all.
        codecs: of ``jpeg``, ``webp`` and ``avif``; those that Pillow lacks are left out with the reason.
        qualities: settings that the codecs' own curves are made of; moved into a codec's range.
        downscale: codecs may also code the picture at 1/2, 1/4 and 1/8 of its side, which is what they need to
            come near the sizes of tokens.
        features: of a Fréchet distance of each tokenizer and length; see ``evaluate_reconstruction``.
        weights: file of the extractor's weights.
        perceptual: a distance of each image: ``lpips``, or ``lite0`` as a stand-in under its own name
            (``lite0_distance``). ``auto`` takes the first that can be had.
        download: whether the network may be asked for weights of metrics.
        decode_options: keyword arguments of ``decode``; each tokenizer gets those that it takes.
        caption, text_encoder: of conditional tokenizers; see ``evaluate_reconstruction``.
        progress: show bars.
    Returns:
        What JSON can hold. ``tokenizers``: for each its ``points`` with ``tokens``, ``payload_bytes`` (tokens alone),
        ``stored_bytes``, ``psnr``, ``ssim``, and the distances. ``codecs``: for each the ``sweep`` over qualities and scales,
        and ``equal_bytes``: for every point of a tokenizer, what the codec reaches, image by image, in at most the point's stored
        bytes: on how many images it can at all (``reached``), its means over these, and the tokenizer's
        over the same (``tokenizer_psnr`` and so on).
    Raises:
        VistokError: tokenizers of different sizes, options that nothing takes, NaN from a tokenizer.
        DataError: no picture can be read.
    """
    started = time.perf_counter()
    protocol = get_protocol(protocol)
    check_names(protocol.crop, protocol.interpolation)
    size = shared_image_size(tokenizers)
    _check_options(source, batch_size, limit, lengths, perceptual)
    options = _options_by_tokenizer(tokenizers, decode_options or {})
    found_codecs, left_out = find_codecs(codecs)
    device = next(iter(tokenizers.values())).device
    instruments = gather_instruments(
        protocol,
        features=features,
        weights=weights,
        lpips=perceptual in ("auto", "lpips"),
        download=download,
        accelerator=None,
        device=device,
    )
    meter = _Meter(protocol, instruments, *_perceptual(perceptual, instruments, device))
    pictures = PictureBatches(source, size, protocol, batch_size=batch_size, limit=limit, progress=progress)
    measured = {}
    for name, tokenizer in tokenizers.items():
        condition = Condition(tokenizer, source, caption, text_encoder) if tokenizer.conditional else None
        own = [length for length in lengths or default_lengths(tokenizer) if length <= tokenizer.num_tokens]
        own = own if tokenizer.ordered else [tokenizer.num_tokens]
        if not own:
            raise VistokError(
                f"{name} has {tokenizer.num_tokens} tokens, and all of the lengths {list(lengths)} are more"
            )
        measured[name] = _measure_tokenizer(name, tokenizer, own, pictures, meter, options[name], condition)
    results = [
        _measure_codec(codec, measured, pictures, meter, qualities, SCALES if downscale else (1,))
        for codec in found_codecs
    ]
    if pictures.unreadable:
        logger.warning("%d pictures cannot be read: %s", len(pictures.unreadable), ", ".join(pictures.unreadable[:5]))
    return {
        "kind": "curve",
        "data": {
            "spec": source.spec,
            "size": len(source),
            "limit": limit,
            "listing_hash": source.listing_hash(),
        },
        "protocol": dataclasses.asdict(protocol),
        "image_size": size,
        "images": pictures.count,
        "unreadable": len(pictures.unreadable),
        "unreadable_names": pictures.unreadable[:_LISTED],
        "metrics": list(meter.names),
        "features": instruments.describe(),
        "stored_bytes": "an image's record in a .vtk file: packed tokens, length and checks; no entropy coding, no index",
        "codec_bytes": "a whole file as Pillow writes it, without metadata",
        "tokenizers": [entry.result() for entry in measured.values()],
        "codecs": results,
        "notes": meter.notes,
        "left_out": meter.left_out | left_out,
        "batch_size": batch_size,
        **describe_run(device, (*instruments.packages, "pillow")),
        "seconds": time.perf_counter() - started,
    }


def _check_options(
    source: ImageSource,
    batch_size: int,
    limit: int | None,
    lengths: Sequence[int] | None,
    perceptual: str,
) -> None:
    if perceptual not in PERCEPTUAL:
        raise ConfigError(f"perceptual is one of {', '.join(PERCEPTUAL)}; got {perceptual!r}")
    for option, value in (("batch_size", batch_size), ("limit", limit), ("a length", min(lengths or [1]))):
        if value is not None and value < 1:
            raise ConfigError(f"{option} is 1 or more, got {value}")
    if not len(source):
        raise DataError(f"the source {source.spec!r} is empty")


def _options_by_tokenizer(tokenizers: Mapping[str, Tokenizer], options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Those of the options that each tokenizer's ``decode`` takes."""
    taken: dict[str, dict[str, Any]] = {}
    for name, tokenizer in tokenizers.items():
        known = inspect.signature(tokenizer.decode).parameters
        taken[name] = {key: value for key, value in options.items() if key in known}
    unknown = options.keys() - {key for own in taken.values() for key in own}
    if unknown:
        raise VistokError(f"none of {', '.join(tokenizers)} decodes with the options {', '.join(sorted(unknown))}")
    return taken


def _perceptual(
    wanted: Perceptual, instruments: Instruments, device: torch.device
) -> tuple[str, Callable[[Tensor, Tensor], Tensor] | None]:
    """The distance of images that can be had, by its name."""
    if wanted in ("auto", "lpips") and instruments.lpips is not None:
        return "lpips", instruments.lpips
    if wanted == "lpips":
        raise CheckpointError(f"LPIPS cannot be had: {instruments.left_out['lpips']}; take perceptual lite0 or none")
    if wanted == "none":
        return "", None
    try:
        network = Lite0Distance().to(device)
    except MissingExtraError as error:
        if wanted == "lite0":
            raise
        instruments.left_out["lite0_distance"] = str(error)
        return "", None
    if wanted == "lite0":
        instruments.left_out.pop("lpips", None)
    else:
        instruments.notes.append("lite0_distance stands in for LPIPS and does not compare with it")
    return network.name, network


class _Meter:
    """Measures batches of images, one value an image and metric."""

    def __init__(
        self,
        protocol: Protocol,
        instruments: Instruments,
        distance_name: str,
        distance: Callable[[Tensor, Tensor], Tensor] | None,
    ) -> None:
        self.protocol, self.instruments, self._distance = protocol, instruments, distance
        self.names = ("psnr", "ssim", *((distance_name,) if distance is not None else ()))
        self.left_out, self.notes = dict(instruments.left_out), list(instruments.notes)

    @torch.no_grad()
    def __call__(self, images: Tensor, originals: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1], and originals [B, ...] or one for all [1, ...] -> float64 [B, metrics], on the CPU."""
        same = originals.expand_as(images)
        columns = [psnr(images, same).clamp(max=_MAX_PSNR), ssim(images, same)]
        if self._distance is not None:
            columns.append(self._distance(images, originals if isinstance(self._distance, Lite0Distance) else same))
        return torch.stack([column.detach().cpu().double() for column in columns], dim=1)


@dataclass
class _Measured:
    """What was measured of one tokenizer.

    Attributes:
        description: what a result says of it.
        lengths: P token counts asked for.
        values: float64 [P, B, metrics]; tokens, payload and stored: [P, B].
    """

    description: dict[str, Any]
    lengths: list[int]
    metrics: tuple[str, ...]
    values: Tensor
    tokens: Tensor
    payload: Tensor
    stored: Tensor
    distances: dict[str, list[float]] = field(default_factory=dict)

    def result(self) -> dict[str, Any]:
        """For JSON."""
        points = [
            {
                "tokens": float(self.tokens[point].mean()),
                "payload_bytes": float(self.payload[point].mean()),
                "stored_bytes": float(self.stored[point].mean()),
                **dict(zip(self.metrics, self.values[point].mean(dim=0).tolist(), strict=True)),
                **{name: values[point] for name, values in self.distances.items()},
            }
            for point in range(len(self.lengths))
        ]
        return {**self.description, "points": points}


def _measure_tokenizer(
    name: str,
    tokenizer: Tokenizer,
    lengths: list[int],
    pictures: PictureBatches,
    meter: _Meter,
    options: dict[str, Any],
    condition: Callable[[list[int]], Any] | None,
) -> _Measured:
    """Every length of a tokenizer on all pictures; they are encoded once."""
    extractor = meter.instruments.extractor
    stats = (
        [FeatureStats(extractor.dims, features=extractor.name) for _ in range(len(lengths) + 1)] if extractor else []
    )
    values: list[list[Tensor]] = [[] for _ in lengths]
    counts: list[list[Tensor]] = [[] for _ in lengths]
    layout: TokenLayout | None = None
    seconds = 0.0
    for indices, images in pictures(name):
        images = images.to(tokenizer.device)
        began = time.perf_counter()
        tokens = tokenizer.encode(images)
        seconds += time.perf_counter() - began
        layout = layout or TokenLayout.of(tokens)
        given = options if condition is None else {**options, "condition": condition(indices)}
        if stats:
            stats[-1].update(extractor(images))
        for point, length in enumerate(lengths):
            cut = tokens.truncate(length)
            began = time.perf_counter()
            decoded = tokenizer.decode(cut, **given).float()
            seconds += time.perf_counter() - began
            if not decoded.isfinite().all():
                raise VistokError(f"{name} decodes NaN or infinity; look at its weights")
            decoded = decoded.clamp(0.0, 1.0)
            if meter.protocol.eight_bit:
                decoded = (decoded * 255.0).round() / 255.0
            values[point].append(meter(decoded, images))
            counts[point].append(cut.lengths.cpu())
            if stats:
                stats[point].update(extractor(decoded))
    tokens_of = torch.stack([torch.cat(column) for column in counts]).double()
    stored = [layout.record_bytes(row.long().tolist()) for row in tokens_of]
    size = tokenizer.codebook_size
    description = {
        "name": name,
        "model": tokenizer.name or tokenizer.family,
        "family": tokenizer.family,
        "weight_hash": tokenizer.weight_hash(),
        "num_tokens": tokenizer.num_tokens,
        "codebook_size": list(size) if isinstance(size, tuple) else size,
        "bits_per_token": layout.bits_per_token,
        "decode_options": {
            key: value if isinstance(value, (int, float, str)) else repr(value) for key, value in options.items()
        },
        "model_seconds": seconds,
    }
    distances = {}
    if stats:
        distances[extractor.metric] = [frechet_distance(stats[-1], own) for own in stats[:-1]]
        note = f"{extractor.metric} of fewer images ({pictures.count}) than its {extractor.dims} dimensions is far too high or low"
        if pictures.count <= extractor.dims and note not in meter.notes:
            meter.notes.append(note)
    return _Measured(
        description,
        lengths,
        meter.names,
        torch.stack([torch.cat(column) for column in values]),
        tokens_of,
        tokens_of * layout.bits_per_token / 8,
        torch.tensor(stored, dtype=torch.float64),
        distances,
    )


def _measure_codec(
    codec: ImageCodec,
    measured: Mapping[str, _Measured],
    pictures: PictureBatches,
    meter: _Meter,
    qualities: Sequence[int],
    scales: Sequence[int],
) -> dict[str, Any]:
    """A codec's own curve, and what it reaches in the bytes of every point of every tokenizer."""
    low, high = codec.qualities
    settings = [
        (min(high, max(low, quality)), scale) for scale in _SWEEP_SCALES if scale in scales for quality in qualities
    ]
    settings = list(dict.fromkeys(settings))
    sweep: list[list[Tensor]] = [[] for _ in settings]
    # name -> point -> for each image, its number of bytes and metrics, or None
    matched: dict[str, list[list[Tensor | None]]] = {name: [[] for _ in own.lengths] for name, own in measured.items()}
    place = 0
    for _, images in pictures(codec.name):
        for original in images:
            search = CodecSearch(codec, (original * 255.0).round().to(torch.uint8))
            coded = [search.at(*setting) for setting in settings]
            budgets = sorted(
                {int(own.stored[point, place]) for own in measured.values() for point in range(len(own.lengths))}
            )
            best = {budget: search.best_within(budget, scales=scales) for budget in budgets}
            fitting = [budget for budget in budgets if best[budget] is not None]
            everything = [*coded, *(best[budget] for budget in fitting)]
            stack = torch.stack([one.image for one in everything]).to(_device(meter))
            metrics = meter(stack, original.to(stack)[None])
            rows = [
                torch.cat([torch.tensor([one.num_bytes], dtype=torch.float64), row])
                for one, row in zip(everything, metrics, strict=True)
            ]
            for column, row in zip(sweep, rows, strict=False):
                column.append(row)
            by_budget = dict(zip(fitting, rows[len(coded) :], strict=True))
            for name, own in measured.items():
                for point in range(len(own.lengths)):
                    matched[name][point].append(by_budget.get(int(own.stored[point, place])))
            place += 1
    return {
        "name": codec.name,
        "version": codec.version,
        "options": dict(codec.options),
        "sweep": [
            {"quality": quality, "scale": scale, **_means(meter.names, torch.stack(column))}
            for (quality, scale), column in zip(settings, sweep, strict=True)
        ],
        "equal_bytes": [
            _equal_bytes(meter.names, name, own, point, matched[name][point])
            for name, own in measured.items()
            for point in range(len(own.lengths))
        ],
    }


def _device(meter: _Meter) -> torch.device:
    """Where a meter's networks are."""
    networks = (meter.instruments.lpips, meter._distance)
    parameters = (next(network.parameters(), None) for network in networks if isinstance(network, torch.nn.Module))
    return next((parameter.device for parameter in parameters if parameter is not None), torch.device("cpu"))


def _means(names: Sequence[str], rows: Tensor) -> dict[str, float]:
    return dict(zip(("bytes", *names), rows.mean(dim=0).tolist(), strict=True))


def _equal_bytes(
    names: Sequence[str], name: str, own: _Measured, point: int, rows: Sequence[Tensor | None]
) -> dict[str, Any]:
    """A codec beside one point of a tokenizer, on the images where the codec can be that small."""
    reached = [place for place, row in enumerate(rows) if row is not None]
    out: dict[str, Any] = {
        "tokenizer": name,
        "tokens": float(own.tokens[point].mean()),
        "stored_bytes": float(own.stored[point].mean()),
        "reached": len(reached),
        "images": len(rows),
    }
    if reached:
        out |= _means(names, torch.stack([rows[place] for place in reached]))
        theirs = own.values[point, reached].mean(dim=0).tolist()
        out |= {f"tokenizer_{metric}": value for metric, value in zip(names, theirs, strict=True)}
    return out


def curve_table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a result's tokenizers, with the codecs' PSNR in the same bytes beside them.

    ``not reachable``: no picture can be coded in so few bytes; ``(n/m)``: only n of m can, and the mean is over these.
    """
    metrics = [*result["metrics"], *(key for key in ("fid", "fd_lite0") if key in result["tokenizers"][0]["points"][0])]
    header = ["tokenizer", "tokens", "payload bytes", "stored bytes", *metrics]
    header += [f"{codec['name']} psnr" for codec in result["codecs"]]
    rows = []
    number = 0
    for tokenizer in result["tokenizers"]:
        for point in tokenizer["points"]:
            row = [
                tokenizer["name"],
                *(f"{point[key]:.4g}" for key in ("tokens", "payload_bytes", "stored_bytes", *metrics)),
            ]
            row += [_codec_cell(codec["equal_bytes"][number]) for codec in result["codecs"]]
            rows.append(row)
            number += 1
    return header, rows


def _codec_cell(entry: dict[str, Any]) -> str:
    if not entry["reached"]:
        return "not reachable"
    share = "" if entry["reached"] == entry["images"] else f" ({entry['reached']}/{entry['images']})"
    return f"{entry['psnr']:.4g}{share}"
