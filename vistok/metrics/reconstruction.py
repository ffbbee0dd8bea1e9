"""How well a tokenizer reconstructs a set of pictures.

Each process takes every so-many-th picture; what is kept a picture is put together by its place in
the set, and the rest is sums, so the result does not depend on the number of processes.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from vistok.data.sources import ImageSource
from vistok.data.transforms import check_names, crop_image, to_tensor
from vistok.errors import ConfigError, DataError, VistokError
from vistok.metrics.codebook import CodebookUsage
from vistok.metrics.frechet import FeatureStats, frechet_distance
from vistok.metrics.instruments import FEATURES, Features, Instruments, gather_instruments
from vistok.metrics.pixel import MS_SSIM_SIDE, ms_ssim, psnr, ssim
from vistok.metrics.processes import main_first, sum_over_processes
from vistok.metrics.protocols import Protocol, get_protocol
from vistok.metrics.result import describe_run
from vistok.models.target import Target, find_lengths
from vistok.registry import cards

if TYPE_CHECKING:
    from accelerate import Accelerator

    from vistok.models.base import Tokenizer

logger = logging.getLogger(__name__)

# An image that comes back exactly has no finite PSNR; a single wrong level in 256 x 256 x 3 has 101 dB.
_MAX_PSNR = 100.0
_LISTED = 100  # unreadable pictures named in a result
# What is kept of every picture.
_COLUMNS = ("read", "psnr", "ssim", "ms_ssim", "lpips", "tokens", "bits", "reached")


def evaluate_reconstruction(
    tokenizer: Tokenizer,
    source: ImageSource,
    *,
    protocol: str | Protocol = "titok",
    batch_size: int = 16,
    limit: int | None = None,
    length: int | None = None,
    target: Target | tuple[str, float] | None = None,
    accelerator: Accelerator | None = None,
    features: Features = "auto",
    weights: str | None = None,
    lpips: bool = True,
    download: bool = True,
    caption: str | None = None,
    text_encoder: Callable[[Sequence[str]], Any] | None = None,
    num_workers: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Encode, decode and measure.

    Everything is measured on reconstructions that are clamped and, if the protocol says so (all
    published ones do), rounded to 8 bits, against the 8-bit originals.

    Args:
        tokenizer: what to evaluate. With an accelerator it is moved to its device.
        source: the pictures; see ``vistok.data.open_source``.
        protocol: a name of ``list_protocols()``, or a Protocol.
        batch_size: images at a time, in each process.
        limit: take this many pictures, evenly spaced over the source; None takes all.
        length: keep this many leading tokens; ordered tokenizers only.
        target: keep the fewest leading tokens that reach a quality, image by image, as ``Tokenizer.encode`` does
            (before rounding); ordered tokenizers only. ``target`` of the result says how many images reach it.
        accelerator: shares the work between processes. Without one, this process does all.
        features: of the Fréchet distance. ``auto`` takes the protocol's, or else ``lite0`` with a
            warning, or else leaves the distance out. A named extractor that cannot be had is an error.
        weights: file of the extractor's weights.
        lpips: measure LPIPS, where its weights can be had.
        download: whether the network may be asked for the weights of metrics.
        caption: of conditional tokenizers: the text for each picture, with ``{caption}`` and
            ``{class name}`` filled in; None takes what the model's card says, else ``{caption}``.
        text_encoder: captions to what ``decode`` takes as condition; CLIP's text tower by default.
        num_workers: processes that read pictures, for each process here.
        progress: show a bar.
    Returns:
        What JSON can hold: ``psnr`` (at most 100 dB an image), ``ssim``, ``ms_ssim`` (from 176 pixels on), ``lpips``, ``fid`` or
        ``fd_lite0``, ``tokens_per_image``, ``bits_per_pixel``, ``codebook``, ``images``,
        ``images_per_second`` (encoding and decoding only) and all that a comparison has to know:
        protocol, ``deviations`` from it, and what was ``left_out`` with the reasons.
    Raises:
        VistokError: options that contradict each other or the tokenizer; NaN from the tokenizer.
        DataError: no picture can be read.
    Source: the evaluation of TiTok (arXiv:2406.07550), with other crops and features by name.
    """
    started = time.perf_counter()
    protocol = get_protocol(protocol)
    _check_options(tokenizer, source, protocol, batch_size, limit, length, features)
    target = None if target is None else Target.parse(target)
    if target is not None and (length is not None or not tokenizer.ordered):
        raise VistokError("a target goes with an ordered tokenizer, and without a length; leave one of them away")
    device = tokenizer.device if accelerator is None else accelerator.device
    if tokenizer.device != device:
        tokenizer.to(device)
    instruments = gather_instruments(
        protocol,
        features=features,
        weights=weights,
        lpips=lpips,
        download=download,
        accelerator=accelerator,
        device=device,
    )
    count = len(source) if limit is None else min(limit, len(source))
    indices = [place * len(source) // count for place in range(count)]
    condition = None
    if tokenizer.conditional:
        condition = main_first(lambda: Condition(tokenizer, source, caption, text_encoder), accelerator)
    run = _Run(tokenizer, protocol, length, target, instruments, condition, count)
    rank, processes = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    share = _Share(source, indices, range(rank, count, processes), tokenizer.image_size, protocol)
    # A generator of its own, as the loader would draw from the global one.
    loader = DataLoader(share, batch_size, num_workers=num_workers, collate_fn=_collate, generator=torch.Generator())
    with tqdm(total=count, unit="image", desc="reconstruct", disable=not progress or rank > 0) as bar:
        for asked, places, images in loader:
            if places:
                run.step(places, [indices[place] for place in places], images.to(device))
            bar.update(min(asked * processes, count - bar.n))  # the others are about as far as rank 0
    run.all_reduce(accelerator)
    data = {"spec": source.spec, "size": len(source), "limit": limit, "listing_hash": source.listing_hash()}
    return {
        **run.result(source, indices, report=rank == 0),
        "data": data if condition is None else data | {"caption": condition.template},
        "batch_size": batch_size,
        "processes": processes,
        "images_per_second": run.images / max(run.model_seconds / processes, 1e-9),
        **describe_run(device, instruments.packages),
        "seconds": time.perf_counter() - started,
    }


def _check_options(
    tokenizer: Tokenizer,
    source: ImageSource,
    protocol: Protocol,
    batch_size: int,
    limit: int | None,
    length: int | None,
    features: str,
) -> None:
    name = tokenizer.name or tokenizer.family
    check_names(protocol.crop, protocol.interpolation)
    if features not in FEATURES:
        raise ConfigError(f"features is one of {', '.join(FEATURES)}; got {features!r}")
    for option, value in (("batch_size", batch_size), ("limit", limit)):
        if value is not None and value < 1:
            raise ConfigError(f"{option} is 1 or more, got {value}")
    if not len(source):
        raise DataError(f"the source {source.spec!r} is empty")
    if length is not None and not tokenizer.ordered:
        raise VistokError(f"{name} has no order of tokens to keep the first {length} of; leave length away")
    if length is not None and not 1 <= length <= tokenizer.num_tokens:
        raise VistokError(f"{name} has 1 to {tokenizer.num_tokens} tokens, got length={length}")


class _Share(Dataset[tuple[int, Tensor | None]]):
    """This process's pictures: their places in the result, and 8-bit tensors, None if unreadable."""

    def __init__(self, source: ImageSource, indices: list[int], places: range, size: int, protocol: Protocol) -> None:
        self.source, self.indices, self.places, self.size, self.protocol = source, indices, places, size, protocol

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> tuple[int, Tensor | None]:
        place = self.places[number]
        try:
            picture = self.source.image(self.indices[place])
            crop, interpolation = self.protocol.crop, self.protocol.interpolation
            return place, to_tensor(crop_image(picture, self.size, crop=crop, interpolation=interpolation))
        except DataError:
            return place, None


def _collate(batch: list[tuple[int, Tensor | None]]) -> tuple[int, list[int], Tensor]:
    """The number of pictures asked for, the places of those that could be read, and these."""
    read = [(place, image) for place, image in batch if image is not None]
    images = torch.stack([image for _, image in read]) if read else torch.empty(0)
    return len(batch), [place for place, _ in read], images


class Condition:
    """Captions of pictures, encoded for a conditional tokenizer."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        source: ImageSource,
        caption: str | None,
        text_encoder: Callable[[Sequence[str]], Any] | None,
    ) -> None:
        card = cards().get(tokenizer.name)
        published = None if card is None else card.preprocessing.get("caption")
        self.template = caption or published or "{caption}"
        self.source = source
        if "{class name}" in self.template and not source.classes:
            raise VistokError(
                f"the caption {self.template!r} names classes, and {source.spec!r} has none; give another"
            )
        if text_encoder is None:
            from vistok.models.text import ClipTextFeatures

            text_encoder = ClipTextFeatures().to(tokenizer.device)
        self.text_encoder = text_encoder

    def __call__(self, indices: list[int]) -> Any:
        return self.text_encoder([self._caption(index) for index in indices])

    def _caption(self, index: int) -> str:
        text = self.template.replace("{caption}", self.source.caption(index))
        label = self.source.label(index)
        return text.replace("{class name}", self.source.classes[label]) if label >= 0 else text


class _Run:
    """Measures batches, and puts the result together."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        protocol: Protocol,
        length: int | None,
        target: Target | None,
        instruments: Instruments,
        condition: Condition | None,
        count: int,
    ) -> None:
        self.tokenizer, self.protocol, self.length, self.condition = tokenizer, protocol, length, condition
        self.target = target
        self.instruments, self.left_out = instruments, dict(instruments.left_out)
        self.values = torch.zeros(count, len(_COLUMNS), dtype=torch.float64)
        self.model_seconds = 0.0
        self.usage = self._make_usage()
        self.stats: tuple[FeatureStats, FeatureStats] | None = None
        extractor = instruments.extractor
        if extractor is not None:
            device = tokenizer.device if tokenizer.device.type == "cuda" else "cpu"  # others may lack double precision
            make = [FeatureStats(extractor.dims, features=extractor.name, device=device) for _ in range(2)]
            self.stats = (make[0], make[1])

    def _make_usage(self) -> CodebookUsage | None:
        size = self.tokenizer.codebook_size
        if self.tokenizer.continuous or size is None:
            self.left_out["codebook"] = "continuous tokens have none"
            return None
        try:
            return CodebookUsage(size)
        except VistokError as error:
            self.left_out["codebook"] = str(error)
            return None

    @property
    def images(self) -> int:
        """Pictures that were read."""
        return int(self.values[:, 0].sum())

    def step(self, places: list[int], indices: list[int], images: Tensor) -> None:
        """Measure one batch [B, 3, S, S]."""
        tokenizer = self.tokenizer
        condition = {} if self.condition is None else {"condition": self.condition(indices)}
        began = _now(images.device)
        tokens = tokenizer.encode(images)
        reached = torch.ones(len(images))
        if self.length is not None:
            tokens = tokens.truncate(self.length)
        if self.target is not None:
            found = find_lengths(tokenizer, images, tokens, self.target, decode_options=condition)
            tokens, reached = tokens.truncate(found.lengths), found.reached
        decoded = tokenizer.decode(tokens, **condition).float()
        self.model_seconds += _now(images.device) - began
        if not decoded.isfinite().all():
            raise VistokError(f"{tokenizer.name or tokenizer.family} decodes NaN or infinity; look at its weights")
        decoded = decoded.clamp(0.0, 1.0)
        if self.protocol.eight_bit:
            decoded = (decoded * 255.0).round() / 255.0
        if self.usage is not None:
            self.usage.update(tokens)
        if self.stats is not None and self.instruments.extractor is not None:
            for stats, pictures in zip(self.stats, (images, decoded), strict=True):
                stats.update(self.instruments.extractor(pictures))
        with torch.no_grad():
            distance = (
                images.new_zeros(len(images))
                if self.instruments.lpips is None
                else self.instruments.lpips(decoded, images)
            )
        columns = (
            torch.ones(len(images)),
            psnr(decoded, images).clamp(max=_MAX_PSNR),
            ssim(decoded, images),
            ms_ssim(decoded, images) if min(images.shape[2:]) >= MS_SSIM_SIDE else images.new_zeros(len(images)),
            distance,
            tokens.lengths,
            tokens.bits(),
            reached,
        )
        self.values[places] = torch.stack([column.detach().cpu().double() for column in columns], dim=1)

    def all_reduce(self, accelerator: Accelerator | None) -> None:
        """Put together what all processes measured. Every place is filled by one of them, so sums are exact."""
        self.values = sum_over_processes(self.values, accelerator)
        self.model_seconds = float(
            sum_over_processes(torch.tensor(self.model_seconds, dtype=torch.float64), accelerator)
        )
        if self.usage is not None:
            self.usage.all_reduce(accelerator)
        for stats in self.stats or ():
            stats.all_reduce(accelerator)

    def result(self, source: ImageSource, indices: list[int], *, report: bool) -> dict[str, Any]:
        """Model, protocol and measurements; ``report``: log what could not be read."""
        read = self.values[:, 0] > 0
        unreadable = [source.name(indices[place]) for place in (~read).nonzero().flatten().tolist()]
        some = ", ".join(unreadable[:5])
        if not self.images:
            raise DataError(f"none of {len(indices)} pictures of {source.spec!r} can be read: {some}")
        if unreadable and report:
            logger.warning("%d of %d pictures cannot be read: %s", len(unreadable), len(indices), some)
        means = dict(zip(_COLUMNS, self.values[read].mean(dim=0).tolist(), strict=True))
        measured = {"psnr": means["psnr"], "ssim": means["ssim"], "lpips": means["lpips"]}
        if self.instruments.lpips is None:
            measured["lpips"] = None
        if self.tokenizer.image_size >= MS_SSIM_SIDE:
            measured["ms_ssim"] = means["ms_ssim"]
        return {
            "kind": "reconstruction",
            **self._describe_model(),
            **measured,
            **self._distance(),
            "tokens_per_image": means["tokens"],
            **self._describe_target(means["reached"]),
            "bits_per_pixel": means["bits"] / self.tokenizer.image_size**2,
            "codebook": self._codebook(),
            "images": self.images,
            "unreadable": len(unreadable),
            "unreadable_names": unreadable[:_LISTED],
            "protocol": dataclasses.asdict(self.protocol),
            "features": self.instruments.describe(),
            "deviations": self._deviations(),
            "left_out": self.left_out,
        }

    def _describe_target(self, share: float) -> dict[str, Any]:
        if self.target is None:
            return {}
        return {
            "target": {"metric": self.target.name, "value": self.target.value, "reached": round(share * self.images)}
        }

    def _describe_model(self) -> dict[str, Any]:
        tokenizer = self.tokenizer
        size = tokenizer.codebook_size
        return {
            "model": tokenizer.name or tokenizer.family,
            "family": tokenizer.family,
            "weight_hash": tokenizer.weight_hash(),
            "image_size": tokenizer.image_size,
            "num_tokens": tokenizer.num_tokens,
            "length": self.length,
            "codebook_size": list(size) if isinstance(size, tuple) else size,
            "dtype": str(tokenizer.dtype).removeprefix("torch."),
        }

    def _distance(self) -> dict[str, float]:
        extractor = self.instruments.extractor
        if self.stats is None or extractor is None:
            return {}
        if self.images < 2:
            self.left_out[extractor.metric] = "a Fréchet distance takes two images or more"
            return {}
        return {extractor.metric: frechet_distance(*self.stats)}

    def _codebook(self) -> dict[str, Any] | None:
        if self.usage is None:
            return None
        factors = self.usage.compute_factors()
        return self.usage.compute() | {"tokens": self.usage.tokens} | ({"factors": factors} if factors else {})

    def _deviations(self) -> list[str]:
        wanted, extractor = self.protocol.num_images, self.instruments.extractor
        out = list(self.instruments.notes)
        if wanted and self.images != wanted:
            out.append(f"{self.images} images instead of {wanted} ({self.protocol.split})")
        if extractor is not None and self.images <= extractor.dims:
            out.append(
                f"{extractor.metric} of fewer images than its {extractor.dims} dimensions is far too high or low"
            )
        return out


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # what was started there counts when it is done
    return time.perf_counter()
