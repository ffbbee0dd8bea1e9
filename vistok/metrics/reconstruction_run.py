"""What a process measures of reconstructions, batch by batch: rows a picture, and sums."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vistok.data.sources import ImageSource
from vistok.errors import DataError, VistokError
from vistok.metrics.codebook import CodebookUsage
from vistok.metrics.findings import count_notes, score_notes
from vistok.metrics.frechet import FeatureStats, frechet_distance
from vistok.metrics.instruments import Instruments
from vistok.metrics.pixel import MS_SSIM_SIDE, ms_ssim, psnr, ssim
from vistok.metrics.processes import sum_over_processes
from vistok.metrics.protocols import Protocol
from vistok.metrics.set_metrics import bootstrap_std, mean_of, split_places
from vistok.models.target import Target, find_lengths

if TYPE_CHECKING:
    from accelerate import Accelerator

    from vistok.models.base import Tokenizer

logger = logging.getLogger(__name__)

# An image that comes back exactly has no finite PSNR; a single wrong level in 256 x 256 x 3 has 101 dB.
_MAX_PSNR = 100.0
_LISTED = 100  # unreadable pictures named in a result
# What is kept of every picture.
_COLUMNS = ("read", "psnr", "ssim", "ms_ssim", "lpips", "tokens", "bits", "reached", "certainty")


class ReconstructionRun:
    """Measures batches, keeps and takes back what it has, and puts the result together; see ``evaluate_reconstruction``."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        protocol: Protocol,
        length: int | None,
        target: Target | None,
        instruments: Instruments,
        condition: Callable[[list[int]], Any] | None,
        count: int,
        bootstrap: int = 0,
    ) -> None:
        self.tokenizer, self.protocol, self.length, self.condition = tokenizer, protocol, length, condition
        self.target = target
        self.instruments, self.left_out = instruments, dict(instruments.left_out)
        self.spread: dict[str, dict[str, Any]] = {}
        self.values = torch.zeros(count, len(_COLUMNS), dtype=torch.float64)
        self.model_seconds = 0.0
        self.usage = self._make_usage()
        self.stats: tuple[FeatureStats, FeatureStats] | None = None
        extractor = instruments.extractor
        if extractor is not None:
            device = tokenizer.device if tokenizer.device.type == "cuda" else "cpu"  # others may lack double precision
            make = [FeatureStats(extractor.dims, features=extractor.name, device=device) for _ in range(2)]
            self.stats = (make[0], make[1])
        # Of originals and reconstructions, [2, N, D]; only where they are drawn from again.
        self.bootstrap = bootstrap if extractor is not None else 0
        self.features = torch.zeros(2, count, extractor.dims) if self.bootstrap and extractor is not None else None
        # The score's parts: where each picture belongs, and the sums of predictions there.
        self.splits = min(protocol.is_splits, count)
        self.split_of = split_places(count, self.splits, shuffle=protocol.is_shuffle)
        self.predicted: Tensor | None = None

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
        certainty = self._update_features(places, images, decoded)
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
            certainty,
        )
        self.values[places] = torch.stack([column.detach().cpu().double() for column in columns], dim=1)

    def _update_features(self, places: list[int], images: Tensor, decoded: Tensor) -> Tensor:
        """Take in both sets' features; the certainty of each prediction on a reconstruction, sum p log p, [B]."""
        extractor = self.instruments.extractor
        if self.stats is None or extractor is None:
            return torch.zeros(len(images))
        layers = ("logits",) if "logits" in extractor.layers else ()
        both = (extractor.every(images, ()), extractor.every(decoded, layers))
        for number, (stats, found) in enumerate(zip(self.stats, both, strict=True)):
            stats.update(found["pooled"])
            if self.features is not None:
                self.features[number, places] = found["pooled"].cpu()
        if not layers:
            return torch.zeros(len(images))
        log_p = both[1]["logits"].cpu().double().log_softmax(dim=1)
        if self.predicted is None:
            self.predicted = torch.zeros(self.splits, log_p.shape[1], dtype=torch.float64)
        self.predicted.index_add_(0, self.split_of[places], log_p.exp())
        return (log_p.exp() * log_p).sum(dim=1)

    def settings(self, source: ImageSource, *, condition: Any) -> dict[str, Any]:
        """What the measurements depend on, as far as it is known here; ``condition`` says how captions are read."""
        return {
            **self.describe_model(),
            "target": None if self.target is None else dataclasses.asdict(self.target),
            "source": source.spec,
            "content": source.content_hash(),
            "protocol": dataclasses.asdict(self.protocol),
            "features": self.instruments.describe(),
            "lpips": self.instruments.lpips is not None,
            "caption": condition,
            "bootstrap": self.bootstrap,
        }

    def state(self) -> dict[str, np.ndarray]:
        """All that was measured, as arrays."""
        out = {"values": self.values.numpy(), "model_seconds": np.array(self.model_seconds)}
        if self.usage is not None:
            out |= {f"usage_{name}": array for name, array in self.usage.state().items()}
        for number, stats in enumerate(self.stats or ()):
            out |= {f"stats{number}_{name}": array for name, array in stats.state().items()}
        for name in ("features", "predicted"):
            if (tensor := getattr(self, name)) is not None:
                out[name] = tensor.numpy()
        return out

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from a ``state``."""

        def part(prefix: str) -> dict[str, np.ndarray]:
            return {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}

        self.values, self.model_seconds = torch.from_numpy(state["values"]), float(state["model_seconds"])
        if self.usage is not None:
            self.usage.restore(part("usage_"))
        for number, stats in enumerate(self.stats or ()):
            stats.restore(part(f"stats{number}_"))
        for name in ("features", "predicted"):
            if name in state:
                setattr(self, name, torch.from_numpy(state[name]))

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
        if self.features is not None:
            self.features = sum_over_processes(self.features, accelerator)
        self._reduce_predictions(accelerator)

    def _reduce_predictions(self, accelerator: Accelerator | None) -> None:
        """A process without pictures does not know how many classes there are."""
        own = 0 if self.predicted is None else self.predicted.shape[1]
        total, knowing = sum_over_processes(torch.tensor([own, int(own > 0)]), accelerator).tolist()
        if knowing:
            zeros = torch.zeros(self.splits, total // knowing, dtype=torch.float64)
            self.predicted = sum_over_processes(zeros if self.predicted is None else self.predicted, accelerator)

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
            **self.describe_model(),
            **measured,
            **self._distance(read),
            **self._score(read),
            "confidence": self._confidence(read),
            "tokens_per_image": means["tokens"],
            **self._describe_target(means["reached"]),
            "bits_per_pixel": means["bits"] / self.tokenizer.image_size**2,
            "codebook": self._codebook(),
            "images": self.images,
            "unreadable": len(unreadable),
            "unreadable_names": unreadable[:_LISTED],
            "protocol": dataclasses.asdict(self.protocol),
            "features": self.instruments.describe(),
            "deviations": self._departures(),
            "left_out": self.left_out,
        }

    def _describe_target(self, share: float) -> dict[str, Any]:
        if self.target is None:
            return {}
        return {
            "target": {"metric": self.target.name, "value": self.target.value, "reached": round(share * self.images)}
        }

    def describe_model(self) -> dict[str, Any]:
        """Name, hash of the weights, sizes and type."""
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

    def _distance(self, read: Tensor) -> dict[str, float]:
        extractor = self.instruments.extractor
        if self.stats is None or extractor is None:
            return {}
        if self.images < 2:
            self.left_out[extractor.metric] = "a Fréchet distance takes two images or more"
            return {}
        if self.features is not None:
            pairs = self.features[:, read]

            def resampled(chosen: Tensor) -> float:
                drawn = [FeatureStats(extractor.dims, features=extractor.name) for _ in range(2)]
                for stats, features in zip(drawn, pairs, strict=True):
                    stats.update(features[chosen])
                return frechet_distance(*drawn)

            self.spread[extractor.metric] = {
                "std": bootstrap_std(resampled, self.images, resamples=self.bootstrap),
                "from": f"bootstrap of the images, {self.bootstrap} resamples",
            }
        return {extractor.metric: frechet_distance(*self.stats)}

    def _score(self, read: Tensor) -> dict[str, float]:
        """The inception score of the reconstructions, from sums."""
        extractor = self.instruments.extractor
        if self.predicted is None or extractor is None:
            return {}
        name = "is" if extractor.metric == "fid" else f"score_{extractor.name}"
        certainty, values = self.values[:, _COLUMNS.index("certainty")], []
        for split in range(self.splits):
            chosen = read & (self.split_of == split)
            if chosen.any():
                mean = self.predicted[split] / chosen.sum()
                values.append(float((certainty[chosen].mean() - torch.special.xlogy(mean, mean).sum()).exp()))
        self.spread[name] = {"std": float(np.std(values)), "from": f"{len(values)} splits"}
        return {name: float(np.mean(values))}

    def _confidence(self, read: Tensor) -> dict[str, dict[str, Any]]:
        """Standard deviations of the numbers."""
        out = dict(self.spread)
        wanted = {"psnr", "ssim", "tokens"}
        wanted |= {"lpips"} if self.instruments.lpips is not None else set()
        wanted |= {"ms_ssim"} if self.tokenizer.image_size >= MS_SSIM_SIDE else set()
        for column, name in enumerate(_COLUMNS):
            error = mean_of(self.values[read, column]).std
            if name in wanted and math.isfinite(error) and (error or name != "tokens"):  # all of one length: no mean
                key = "tokens_per_image" if name == "tokens" else name
                out[key] = {"std": error, "from": f"standard error over {self.images} images"}
        return out

    def _codebook(self) -> dict[str, Any] | None:
        if self.usage is None:
            return None
        factors = self.usage.compute_factors()
        return self.usage.compute() | {"tokens": self.usage.tokens} | ({"factors": factors} if factors else {})

    def _departures(self) -> list[str]:
        wanted, extractor = self.protocol.num_images, self.instruments.extractor
        out = list(self.instruments.notes)
        if wanted and self.images != wanted:
            out.append(f"{self.images} images instead of {wanted} ({self.protocol.split})")
        if extractor is not None:
            out += count_notes({"images": self.images}, extractor.dims)
            out += score_notes(self.images) if "logits" in extractor.layers else []
        return out


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # what was started there counts when it is done
    return time.perf_counter()
