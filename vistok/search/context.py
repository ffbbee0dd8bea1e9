"""What every search method works with: drawing, decoding and scoring, all counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.generate.pairing import same_origin
from vistok.models.base import Tokenizer
from vistok.search.prior import GeneratorPrior, Prior, Rows
from vistok.search.result import Cost, best_first
from vistok.search.verifiers.base import Verifier
from vistok.seeds import stable_seed
from vistok.tokens import Tokens


@dataclass
class SearchContext:
    """A search under way. Methods touch models only through it, so that the cost account is exact.

    Attributes:
        prior, tokenizer, verifier: the models; no tokenizer where nothing is decoded.
        conditions, seeds: one for each of B images.
        length: tokens of a whole candidate.
        num_results: winners an image.
        batch_size: rows at a time, in every model.
        prefix: ids [B * R, t] to go on from, R rows an image; None begins with nothing.
        preview: options of ``decode`` for candidates.
        final: options of ``decode`` for the winners.
        decode_condition: of a tokenizer that decodes with a condition: the conditions to what it takes.
        fill: the id in place of tokens that are not drawn yet, for tokenizers that want all of them.
        deduplicate: decode and measure equal candidates of an image once.
        cost: what was done so far.
    """

    prior: Prior
    tokenizer: Tokenizer | None
    verifier: Verifier
    conditions: list[Any]
    seeds: list[int]
    length: int
    num_results: int = 1
    batch_size: int = 256
    prefix: Tensor | None = None
    preview: Mapping[str, Any] = field(default_factory=dict)
    final: Mapping[str, Any] = field(default_factory=dict)
    decode_condition: Any = None
    fill: int | None = None
    deduplicate: bool = True
    cost: Cost = field(default_factory=Cost)
    _gallery: dict[tuple[int, int, bytes], tuple[float, Tensor]] = field(default_factory=dict)
    _warned: bool = False

    def start(self) -> Rows:
        """Rows to go on from, R for each image."""
        return self.prior.start(self.conditions, self.seeds, self.prefix, self.cost)

    def generate(
        self, owners: Sequence[int], num: int, seeds: Sequence[int], *, sample: bool = True
    ) -> tuple[Tokens, Tensor | None]:
        """``num`` whole candidates for each of these images, side by side; what the condition costs is paid once for all."""
        conditions = [self.conditions[owner] for owner in owners]
        return self.prior.generate(conditions, num, seeds, self.length, self.cost, sample=sample)

    @torch.no_grad()
    def measure(
        self,
        owners: Sequence[int],
        ids: Tensor,
        log_probs: Tensor | None,
        *,
        drawn: int | None = None,
        num_new: int | None = None,
        noise_seeds: Sequence[int] | None = None,
    ) -> Tensor:
        """The verifier's measures of N candidates, float64 [N, k], decoded where it wants images.

        Args:
            owners: N numbers of images.
            ids: [N, t], or latents [N, t, C].
            log_probs: [N, u] of the tokens drawn so far.
            drawn: u, where the ids go on beyond these; None is t.
            num_new: how many of the u are of this step; None where there are no steps.
            noise_seeds: N, of what decoding draws; None is the same for all candidates of an image.
        """
        noise_seeds = [self._noise_seed(owner) for owner in owners] if noise_seeds is None else list(noise_seeds)
        keys = [_key(owner, seed, row) for owner, seed, row in zip(owners, noise_seeds, ids, strict=True)]
        chosen, places = _distinct(keys if self.deduplicate else range(len(keys)))
        if isinstance(self.prior, GeneratorPrior) and not self.prior.conditional:
            log_probs = None  # they are of no condition, and the verifier is asked about one
        parts = []
        for start in range(0, len(chosen), self.batch_size):
            rows = torch.tensor(chosen[start : start + self.batch_size])
            mine = [owners[row] for row in rows.tolist()]
            seeds = [noise_seeds[row] for row in rows.tolist()]
            images = self._decode(mine, ids[rows], seeds, self.preview) if self.verifier.needs_images else None
            found = self.verifier.measure(
                images,
                [self.conditions[owner] for owner in mine],
                tokens=self.prior.tokens(ids[rows, :drawn]),
                log_probs=None if log_probs is None else log_probs[rows],
                num_new=num_new,
            )
            found = check_measures(found, len(rows), self.verifier.name)
            self.cost.verifier_calls += len(rows)
            parts.append(found)
            self._keep(mine, seeds, ids[rows], images, found)
        return torch.cat(parts)[torch.tensor(places)]

    def combine(self, measures: Tensor) -> Tensor:
        """Scores [B, n] out of measures [B, n, k], image by image."""
        return torch.stack([self.verifier.combine(own).double() for own in measures])

    def forget(self) -> None:
        """Drop the images that were kept, before the next step."""
        self._gallery.clear()

    def images(self, owners: Sequence[int], ids: Tensor, noise_seeds: Sequence[int] | None = None) -> Tensor:
        """Images [N, 3, H, W] of the winners, on the CPU; those that the verifier has seen are not decoded again."""
        noise_seeds = [self._noise_seed(owner) for owner in owners] if noise_seeds is None else list(noise_seeds)
        keys = [_key(owner, seed, row) for owner, seed, row in zip(owners, noise_seeds, ids, strict=True)]
        known = {key: self._gallery[key][1] for key in keys if key in self._gallery}
        missing = [row for row in _distinct(keys)[0] if keys[row] not in known]
        for start in range(0, len(missing), self.batch_size):
            rows = missing[start : start + self.batch_size]
            made = self._decode(
                [owners[row] for row in rows], ids[rows], [noise_seeds[row] for row in rows], self.final
            )
            known.update({keys[row]: image for row, image in zip(rows, made, strict=True)})
        return torch.stack([known[key] for key in keys])

    def _noise_seed(self, owner: int) -> int:
        return stable_seed(self.seeds[owner], "decode")

    def _keep(self, owners: list[int], seeds: list[int], ids: Tensor, images: Tensor | None, measures: Tensor) -> None:
        """Only images that may yet win are held: an image's best few so far."""
        if images is None or self.verifier.relative or dict(self.preview) != dict(self.final):
            return
        for owner, seed, row, image, score in zip(owners, seeds, ids, images, measures[:, 0].tolist(), strict=True):
            self._gallery[_key(owner, seed, row)] = (score, image)
        for owner in set(owners):
            mine = [key for key in self._gallery if key[0] == owner]
            order = best_first(torch.tensor([self._gallery[key][0] for key in mine], dtype=torch.float64))
            for place in order[self.num_results :].tolist():
                del self._gallery[mine[place]]

    def _decode(
        self, owners: Sequence[int], ids: Tensor, noise_seeds: Sequence[int], options: Mapping[str, Any]
    ) -> Tensor:
        """Images [N, 3, H, W] of one batch, on the CPU."""
        tokenizer = self.tokenizer
        if self.fill is not None and ids.shape[1] < tokenizer.num_tokens:
            rest = torch.full((len(ids), tokenizer.num_tokens - ids.shape[1]), self.fill)
            ids = torch.cat([ids, rest], dim=1)
        tokens = self.prior.tokens(ids)
        if not self._warned:
            self._warned = not same_origin(tokens, tokenizer)
        given = dict(tokenizer.decode_noise(noise_seeds)) | dict(options)
        if self.decode_condition is not None:
            given["condition"] = self.decode_condition([self.conditions[owner] for owner in owners])
        self.cost.decoder_passes += len(tokens)
        self.cost.decoder_forwards += len(tokens) * tokenizer.decode_forwards(**options)
        return tokenizer.decode(tokens.to(tokenizer.device), **given).cpu()


def check_measures(measures: Any, count: int, name: str) -> Tensor:
    """Measures as float64 [N, k] on the CPU.

    Raises:
        VistokError: not finite ones for each of ``count`` candidates.
    """
    measures = torch.as_tensor(measures).detach().to("cpu", torch.float64)
    if measures.ndim != 2 or len(measures) != count or not bool(measures.isfinite().all()):
        raise VistokError(
            f"the verifier {name} gives one finite score for each of {count} candidates; "
            f"got {list(measures.shape)}, {int(measures.isfinite().sum())} of them finite"
        )
    return measures


def _key(owner: int, seed: int, ids: Tensor) -> tuple[int, int, bytes]:
    return owner, seed, ids.numpy().tobytes()


def _distinct(keys: Sequence[Any]) -> tuple[list[int], list[int]]:
    """Where each different key comes first, in this order; and which of these every key is."""
    first: dict[Any, int] = {}
    chosen: list[int] = []
    places = []
    for row, key in enumerate(keys):
        if key not in first:
            first[key] = len(chosen)
            chosen.append(row)
        places.append(first[key])
    return chosen, places
