"""How well a tokenizer reconstructs a set of pictures.

Each process takes every so-many-th batch; what is kept a picture is put together by its place in
the set, and the rest is sums, so the result does not depend on the number of processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from vistok.data.imagenet import class_words
from vistok.data.sources import ImageSource
from vistok.data.transforms import check_names, crop_image, to_tensor
from vistok.errors import ConfigError, DataError, VistokError
from vistok.metrics.feature_set import evenly_spaced
from vistok.metrics.instruments import FEATURES, Features, gather_instruments
from vistok.metrics.kept_state import KeptState
from vistok.metrics.processes import main_first
from vistok.metrics.protocols import Protocol, get_protocol
from vistok.metrics.reconstruction_run import ReconstructionRun
from vistok.metrics.result import describe_run
from vistok.models.base import state_hash
from vistok.models.target import Target
from vistok.registry import cards

if TYPE_CHECKING:
    from accelerate import Accelerator

    from vistok.models.base import Tokenizer

_SAVE_SECONDS = 60.0  # between two states; longer where writing one takes long


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
    bootstrap: int = 0,
    cache: str | Path | None = None,
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
        bootstrap: resamples of the images, 2 or more, that the standard deviation of the Fréchet distance is taken from; 0 leaves it
            out. The features of all images are kept in memory for it.
        cache: folder to keep what was measured in, about once a minute; a killed run goes on from there, on as many processes, and
            gives what it would have given. One that keeps an evaluation of other settings is refused.
        num_workers: processes that read pictures, for each process here.
        progress: show a bar.
    Returns:
        What JSON can hold: ``psnr`` (at most 100 dB an image), ``ssim``, ``ms_ssim`` (from 176 pixels on), ``lpips``, ``fid`` or
        ``fd_lite0``, ``is`` or ``score_lite0``, ``tokens_per_image``, ``bits_per_pixel``, ``codebook`` (usage, perplexity, dead
        codes ...), ``images``, ``images_per_second`` (encoding and decoding only), ``confidence`` (standard deviations by metric,
        and where they are from) and all that a comparison has to know: protocol, ``deviations`` from it, and what was ``left_out`` with the reasons.
    Raises:
        VistokError: options that contradict each other or the tokenizer; NaN from the tokenizer.
        DataError: no picture can be read.
    Source: the evaluation of TiTok (arXiv:2406.07550), with other crops and features by name.
    """
    started = time.perf_counter()
    protocol = get_protocol(protocol)
    _check_options(tokenizer, source, protocol, batch_size, limit, length, features, bootstrap)
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
    indices = evenly_spaced(len(source), limit)
    count = len(indices)
    condition = None
    if tokenizer.conditional:
        condition = main_first(lambda: Condition(tokenizer, source, caption, text_encoder), accelerator)
    run = ReconstructionRun(tokenizer, protocol, length, target, instruments, condition, count, bootstrap)
    rank, processes = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    # Whole batches: what a network gives for a picture depends on its batch, by rounding.
    places = [place for place in range(count) if place // batch_size % processes == rank]
    kept, done, earlier = None, 0, 0.0
    if cache is not None:
        settings = run.settings(source, condition=None if condition is None else condition.describe())
        settings |= {"limit": limit, "batch_size": batch_size, "device": device.type}
        kept = KeptState(cache, "reconstruction", settings, seconds=_SAVE_SECONDS, accelerator=accelerator)
        state = kept.load()
        if state is not None:
            run.restore(state)
            done, earlier = int(state["done"]), float(state["seconds"])

    def state_now() -> dict[str, np.ndarray]:
        seconds = earlier + time.perf_counter() - started
        return run.state() | {"done": np.array(done), "seconds": np.array(seconds)}

    share = _Share(source, indices, places[done:], tokenizer.image_size, protocol)
    # A generator of its own, as the loader would draw from the global one.
    loader = DataLoader(share, batch_size, num_workers=num_workers, collate_fn=_collate, generator=torch.Generator())
    with tqdm(total=count, unit="image", desc="reconstruct", disable=not progress or rank > 0) as bar:
        bar.update(min(done * processes, count))  # the others are about as far as rank 0
        for asked, read, images in loader:
            if read:
                run.step(read, [indices[place] for place in read], images.to(device))
            done += asked
            if kept is not None:
                kept.save(state_now, now=done == len(places))
            bar.update(min(asked * processes, count - bar.n))
    run.all_reduce(accelerator)
    data = {"spec": source.spec, "size": len(source), "limit": limit, "listing_hash": source.listing_hash()}
    return {
        **run.result(source, indices, report=rank == 0),
        "data": data if condition is None else data | {"caption": condition.template},
        "batch_size": batch_size,
        "processes": processes,
        "images_per_second": run.images / max(run.model_seconds / processes, 1e-9),
        **describe_run(device, instruments.packages),
        "seconds": earlier + time.perf_counter() - started,
    }


def _check_options(
    tokenizer: Tokenizer,
    source: ImageSource,
    protocol: Protocol,
    batch_size: int,
    limit: int | None,
    length: int | None,
    features: str,
    bootstrap: int,
) -> None:
    name = tokenizer.name or tokenizer.family
    check_names(protocol.crop, protocol.interpolation)
    if features not in FEATURES:
        raise ConfigError(f"features is one of {', '.join(FEATURES)}; got {features!r}")
    for option, value in (("batch_size", batch_size), ("limit", limit)):
        if value is not None and value < 1:
            raise ConfigError(f"{option} is 1 or more, got {value}")
    if bootstrap < 0 or bootstrap == 1:
        raise ConfigError(f"bootstrap is 0 (none), or 2 resamples or more; got {bootstrap}")
    if not len(source):
        raise DataError(f"the source {source.spec!r} is empty")
    if length is not None and not tokenizer.ordered:
        raise VistokError(f"{name} has no order of tokens to keep the first {length} of; leave length away")
    if length is not None and not 1 <= length <= tokenizer.num_tokens:
        raise VistokError(f"{name} has 1 to {tokenizer.num_tokens} tokens, got length={length}")


class _Share(Dataset[tuple[int, Tensor | None]]):
    """This process's pictures: their places in the result, and 8-bit tensors, None if unreadable."""

    def __init__(
        self, source: ImageSource, indices: list[int], places: list[int], size: int, protocol: Protocol
    ) -> None:
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
        self._class_names = class_words(source.classes)
        if text_encoder is None:
            from vistok.models.text import ClipTextFeatures

            text_encoder = ClipTextFeatures().to(tokenizer.device)
        self.text_encoder = text_encoder

    def __call__(self, indices: list[int]) -> Any:
        return self.text_encoder([self._caption(index) for index in indices])

    def describe(self) -> list[str]:
        """Template and encoder, as far as these can be told apart."""
        encoder = self.text_encoder
        weights = state_hash(encoder.state_dict()) if isinstance(encoder, nn.Module) else ""
        return [self.template, type(encoder).__name__, weights]

    def _caption(self, index: int) -> str:
        text = self.template.replace("{caption}", self.source.caption(index))
        label = self.source.label(index)
        return text.replace("{class name}", self._class_names[label]) if label >= 0 else text
