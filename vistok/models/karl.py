"""KARL: as many tokens as an image needs for a wanted quality, found in one pass.

Paper: Single-pass Adaptive Image Tokenization for Minimum Program Search, arXiv:2507.07995. Matches the published
``karl_small_*`` checkpoints.

Notable:

- The encoder reads a condition (the wanted mean absolute error), the map of a grid tokenizer with patches, and T
  latent tokens. Each token comes out with a probability of being superfluous; those above 0.75 are deleted.
- Deleted tokens need not be the last ones, and a token keeps the position it had. ``kept: any`` therefore writes
  the number of deleted positions just before a token beside its code (see ``join_gaps``); ``kept: prefix``
  (house) deletes only a tail, and needs no such number.
- Training runs twice an iteration: the first run measures an image's error with T tokens, the second learns to
  need only T tokens for that error. See ``forward``.
- Published training gave most heads of an image the masks of other images. Masks are each image's own here;
  ``mixed_masks`` is there to compare.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.layers.linear_codec import LinearCodec
from vistok.layers.progressive_codec import ProgressiveCodec
from vistok.models.adaptive import AdaptiveTokenizer
from vistok.models.karl_config import KarlConfig
from vistok.models.karl_networks import ConditionedEncoder, SparseLatentDecoder
from vistok.quantizers import FiniteScalarQuantizer, VectorQuantizer
from vistok.tokens import Tokens

# Mean absolute errors that the encoder has a condition for.
ERRORS = (
    0.005,
    0.01,
    0.02,
    0.03,
    0.04,
    0.05,
    0.06,
    0.07,
    0.09,
    0.1,
    0.12,
    0.14,
    0.16,
    0.18,
    0.2,
    0.24,
    0.28,
    0.32,
    0.38,
)
# The first run of training asks for one of so many smallest errors, to begin with: for nearly all there is.
NUM_NEAR_LOSSLESS = 5
# A token goes whose probability of being superfluous is above this.
DROP_ABOVE = 0.75
_HALTING_WIDTH = 512
# Where the linear start of halting is unsure: errors within a fifth of the wanted one. It compares root mean squares with
# mean absolute errors, which are about 0.7 times as large.
_HALTING_GAIN = 6.0
_HALTING_BIAS = _HALTING_GAIN * math.log(1.0 / 0.7)


class Karl(AdaptiveTokenizer):
    """Base, encoder with its halting head, quantizer, decoder.

    Args:
        config: see ``KarlConfig``.
    """

    family = "karl"
    config_class = KarlConfig
    errors = ERRORS
    num_first_errors = NUM_NEAR_LOSSLESS

    def __init__(self, config: KarlConfig) -> None:
        super().__init__(config)
        width = config.encoder.width
        base = self.make_base()
        self.encoder = ConditionedEncoder(
            channels=base.channels,
            patch_size=config.patch_size,
            num_latents=config.num_tokens,
            num_conditions=len(ERRORS),
            size=config.encoder,
        )
        self.norm_halting = nn.LayerNorm(width)
        self.halting_head = nn.Sequential(nn.Linear(width, _HALTING_WIDTH), nn.Tanh(), nn.Linear(_HALTING_WIDTH, 1))
        if config.init != "progressive":
            self.norm_latents = nn.LayerNorm(width)
            self.to_latents = nn.Linear(width, config.code_dim)
        self.quantizer: VectorQuantizer | FiniteScalarQuantizer | None = None
        if config.quantizer == "fsq":
            self.quantizer = FiniteScalarQuantizer(config.levels)
        elif config.quantizer == "vq":
            self.quantizer = self.make_vq()
        self.decoder = SparseLatentDecoder(
            grid_size=base.grid_size,
            latent_dim=config.code_dim,
            num_latents=config.num_tokens,
            out_dim=base.out_channels,
            size=config.decoder,
        )
        if self._is_linear:
            sizes = (config.image_size, config.num_tokens, config.code_dim)
            self.linear = LinearCodec(*sizes) if config.init == "linear" else ProgressiveCodec(*sizes, config.levels[0])
            self.linear_embed = nn.Conv2d(3, config.decoder.width, config.patch_size, stride=config.patch_size)
            self.linear_halting_gain = nn.Parameter(torch.tensor(_HALTING_GAIN))
            self.linear_halting_bias = nn.Parameter(torch.tensor(_HALTING_BIAS))
        self.base = base  # last, so that ``dtype`` is the trained part's
        self._init_weights()

    # What the object is and can do.

    @property
    def codebook_size(self) -> int | tuple[int, ...] | None:
        """K (the levels, of ``fsq``), and the number of positions as one more factor where an id says how many before it
        were deleted."""
        if self.continuous:
            return None
        size = self.quantizer.codebook_size
        if self.config.kept == "prefix":
            return size
        return (*(size if isinstance(size, tuple) else (size,)), self.config.num_tokens)

    @property
    def num_codes(self) -> int:
        """K, the number of codes of a token."""
        size = self.quantizer.codebook_size
        return math.prod(size) if isinstance(size, tuple) else size

    @property
    def token_dim(self) -> int:
        """Channels of a continuous token: C, and one more for the number of deleted positions before it."""
        return self.config.code_dim + (self.config.kept == "any")

    def no_weight_decay(self) -> tuple[str, ...]:
        return ()  # published training decays all but one-dimensional parameters

    # From images to tokens.

    @torch.no_grad()
    def encode(
        self,
        images: Tensor,
        *,
        target_error: float | Sequence[float] | Tensor | None = None,
        max_tokens: int | None = None,
        length: int | Sequence[int] | Tensor | None = None,
        target: Any = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        decode_options: Mapping[str, Any] | None = None,
    ) -> Tokens:
        """Turn images into as many tokens as they need, in one pass and without gradients.

        Args:
            images: float RGB in [0, 1], shape [B, 3, H, W]; H = W = ``image_size``.
            target_error: the mean absolute error that is wanted: one number for all or one for each image. It is
                rounded up to the next of ``ERRORS``. None: the configuration's (0.05).
            max_tokens: T, at most so many tokens, 1..``num_tokens``. None: the configuration's budget (256).
            length: exactly so many tokens for each image, none deleted, instead of ``max_tokens``.
            target, decode_options: of ordered tokenizers, whose length is searched for; refused here.
            generator: draws the sample of the ``kl`` base's posterior, as published encoding does; None takes the mean.
            noise: [B, C, h, w], that sample's noise itself.
        Returns:
            ragged Tokens; a row may have 0 tokens.
        Raises:
            VistokError: wrong shape, type or values.
        """
        self._refuse_search(target, decode_options)
        self.check_images(images)
        if length is not None and max_tokens is not None:
            raise VistokError(f"either a length or max_tokens is wanted, got {length!r} and {max_tokens}")
        images = images.to(self.device, self.dtype)
        conditions = self.error_index(target_error, len(images))
        latents = self.base.encode(images, generator=generator, noise=noise)
        if length is not None:
            lengths = torch.tensor(self._exact_lengths(length, len(images)), device=self.device)
        else:
            count = self.config.budget if max_tokens is None else self._checked_count(max_tokens)
            lengths = torch.full((len(images),), count, device=self.device)
        longest = int(lengths.max())
        values = images.new_zeros((len(images), longest, self.config.code_dim), dtype=torch.float32)
        kept = torch.zeros((len(images), longest), dtype=torch.bool, device=self.device)
        # How many latent tokens there are changes what all of them become: rows of one number are one batch.
        for count in lengths.unique().tolist():
            rows = (lengths == count).nonzero()[:, 0]
            hidden = self.encoder(images[rows], latents[rows], conditions[rows], count)
            values[rows, :count] = self.latents(hidden, images[rows]).float()
            if length is not None:
                kept[rows, :count] = True
            else:
                kept[rows, :count] = self.keep_mask(self.halting_logits(hidden, images[rows], conditions[rows]))
        return self.pack(values, kept)

    def error_index(self, error: float | Sequence[float] | Tensor | None, batch: int) -> Tensor:
        """The row of ``ERRORS`` for wanted errors: the smallest that is not below, int64 [B]."""
        wanted = self.wanted_errors(error, batch).contiguous()
        grid = torch.tensor(ERRORS, device=self.device)
        return torch.searchsorted(grid, wanted).clamp_max(len(ERRORS) - 1)

    def halting_logits(self, hidden: Tensor, images: Tensor, conditions: Tensor) -> Tensor:
        """Encoder outputs [B, T, D], of images asked for rows ``conditions`` of ``ERRORS`` -> logits [B, T] of a token's
        being superfluous."""
        logits = self.halting_head(self.norm_halting(hidden)).squeeze(-1)
        return logits + self._linear_halting(images, conditions, hidden.shape[1]) if self._is_linear else logits

    def _linear_halting(self, images: Tensor, conditions: Tensor, count: int) -> Tensor:
        """What the linear codec knows: token i is superfluous where its error with i tokens is below the wanted one."""
        with torch.no_grad():
            error = self.linear.prefix_errors(images, quantise=lambda values: self.quantizer(values).latents)
            wanted = torch.tensor(ERRORS, device=images.device)[conditions]
            margin = wanted.log()[:, None] - error[:, :count].clamp_min(1e-4).log()
        return self.linear_halting_gain * margin + self.linear_halting_bias

    def keep_mask(self, logits: Tensor) -> Tensor:
        """Halting logits [B, T] -> bool [B, T], which tokens stay."""
        kept = logits.float().sigmoid() <= DROP_ABOVE
        if self.config.kept == "prefix":  # all up to the last one that stays
            kept = kept.flip(1).cummax(dim=1).values.flip(1)
        return kept

    def latents(self, hidden: Tensor, images: Tensor | None = None) -> Tensor:
        """Encoder outputs [B, T, D] (and their images, unless ``init: random``) -> latents before quantisation [B, T, C]."""
        if self.config.init == "progressive":
            return self.linear.encode(images)[:, : hidden.shape[1]]
        latents = self.to_latents(self.norm_latents(hidden))
        return latents + self.linear.encode(images)[:, : hidden.shape[1]] if self._is_linear else latents

    def pack(self, latents: Tensor, kept: Tensor) -> Tokens:
        """Tokens of latents [B, T, C] before quantisation, without those that are not ``kept`` (bool [B, T])."""
        names = {"family": self.family, "model": self.name, "weight_hash": self.weight_hash()}
        lengths = kept.sum(dim=1)
        longest = int(lengths.max())
        order = torch.sort((~kept).to(torch.uint8), dim=1, stable=True).indices[:, :longest]  # kept ones first
        gaps = order - F.pad(order, (1, 0), value=-1)[:, :-1] - 1
        gaps = torch.where(torch.arange(longest, device=kept.device) < lengths[:, None], gaps, 0)
        latents = latents.gather(1, order[..., None].expand(-1, -1, latents.shape[2]))
        if self.continuous:
            if self.config.kept == "any":
                latents = torch.cat([latents, gaps[..., None].to(latents.dtype)], dim=-1)
            return Tokens(latents=latents, lengths=lengths, **names)
        ids = self.quantizer(latents).ids if longest else order
        ids = ids if self.config.kept == "prefix" else join_gaps(ids, gaps, self.num_codes)
        return Tokens(ids=ids, lengths=lengths, codebook_size=self.codebook_size, **names)

    def unpack(self, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
        """Tokens -> quantised latents [B, L, C], and their positions int64 [B, L] (None for 0..L-1).

        Positions past the last one, which no encoder writes but a generator may, become the last one.
        """
        if self.config.kept == "prefix":
            return (tokens.latents if self.continuous else self.quantizer.lookup(tokens.ids)), None
        if self.continuous:
            latents, gaps = tokens.latents[..., :-1], tokens.latents[..., -1].float().round().long().clamp_min(0)
        else:
            ids, gaps = split_gaps(tokens.ids, self.num_codes)
            latents = self.quantizer.lookup(ids)
        return latents, (gaps + 1).cumsum(dim=1).sub(1).clamp_max(self.num_tokens - 1)

    # From tokens to images.

    @torch.no_grad()
    def decode(self, tokens: Tokens, *, condition: Any = None, clamp: bool = True) -> Tensor:
        """Tokens to images [B, 3, H, W]; see ``Tokenizer.decode``. Rows may differ in length, and have 0 tokens."""
        self.check_tokens(tokens)
        self._refuse_condition(condition)
        tokens = tokens.to(self.device)
        lengths = tokens.lengths
        longest = int(lengths.max())
        latents, positions = self.unpack(tokens)
        kept = None if int(lengths.min()) == longest else tokens.mask()[:, :longest]
        _, images = self.decode_latents(
            latents[:, :longest].to(self.dtype),
            positions=None if positions is None else positions[:, :longest],
            kept=kept,
        )
        images = images.float()
        return images.clamp_(0.0, 1.0) if clamp else images

    def decode_latents(
        self, latents: Tensor, *, positions: Tensor | None = None, kept: Tensor | None = None, mixed: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Quantised latents [B, L, C] -> what the base decodes [B, h*w, O], and images [B, 3, H, W], not clamped.

        Args:
            latents, positions, kept, mixed: see ``SparseLatentDecoder``.
        """
        options = {"positions": positions, "kept": kept, "mixed": mixed}
        if not self._is_linear:
            out = self.decoder(latents, **options)
            return out, self.base.decode(out)
        pixels = self.linear.decode(latents, kept=kept)
        out = self.decoder(latents, **options, grid=self.linear_embed(pixels).flatten(2).transpose(1, 2))
        return out, self.base.decode(out) + pixels

    def fit_linear(self, images: Tensor) -> None:
        """Start ``init: linear`` or ``progressive`` from training images [M, 3, H, W] in [0, 1]: their principal components."""
        if not self._is_linear:
            raise VistokError("fit_linear is for models with init: linear or progressive")
        self.linear.fit(images)

    def check_tokens(self, tokens: Tokens) -> None:
        if isinstance(tokens, Tokens) and len(tokens) and int(tokens.lengths.min()) == 0:
            # An image may do without tokens: the rest is checked as if it had one.
            padded = tokens.pad(max(1, tokens.num_tokens))
            tokens = padded.replace(lengths=padded.lengths.clamp_min(1))
        super().check_tokens(tokens)

    # Training.

    def forward(
        self,
        images: Tensor,
        *,
        count: int | None = None,
        conditions: Tensor | None = None,
        noise: Tensor | None = None,
        uniform: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Any]:
        """The two runs of a training iteration.

        The first, without mask, finds an image's error with T tokens. The second is asked for that error, has
        the full budget, is masked by its own predictions, and should find the tokens after the first T superfluous.

        Args:
            images: float RGB in [0, 1], [B, 3, H, W].
            count: T; drawn from ``train_counts`` where not given.
            conditions: int64 [B], the rows of ``ERRORS`` that the first run is asked for.
            noise: [B, C, h, w], of the ``kl`` base's posterior; without it, its mean.
            uniform: [B] in [0, 1), draws ``conditions`` among the five smallest errors where they are not given.
            generator: CPU generator of ``count``.
        Returns:
            ``runs``: two dicts, each with ``out`` [B, h*w, O], ``halting`` [B, T] (logits), ``targets`` (of them: 0
            stays, 1 goes), ``loss_commitment``, ``loss_codebook`` and ``ids`` of ``vq``, and ``reconstruction`` [B, 3,
            H, W]; where the base is frozen, that is without gradients and of the first run only, and there are
            ``features`` [B, h*w, C], what is learned to be ``codes``;
            ``count``: T; ``error``: [B], the first run's mean absolute error;
            ``codes`` and, of the VQGAN, ``base_ids``: see ``GridTargets``.
        """
        config = self.config
        count = self.draw_count(generator) if count is None else self._checked_count(count)
        if conditions is None:
            uniform = torch.rand(len(images), generator=generator) if uniform is None else uniform
            conditions = (uniform.to(images.device) * NUM_NEAR_LOSSLESS).long()
        latents = self.encode_base(images, noise)
        goal = self.base.targets(images, latents)
        first = self._run(images, latents, conditions, count, masked=False)
        error = (first["reconstruction"].detach().float() - images.float()).abs().flatten(1).mean(dim=1)
        conditions = self.error_index(error, len(images))
        second = self._run(images, latents, conditions, config.budget, masked=True)
        first["targets"] = torch.zeros_like(first["halting"], dtype=torch.float32)
        late = torch.arange(config.budget, device=images.device) >= count
        second["targets"] = late.float().expand(len(images), -1)
        return {
            "runs": [first, second],
            "count": count,
            "error": error,
            "codes": goal.codes,
            "base_ids": goal.ids,
        }

    def _run(self, images: Tensor, latents: Tensor, conditions: Tensor, count: int, *, masked: bool) -> dict[str, Any]:
        hidden = self.encoder(images, latents, conditions, count)
        halting, values = self.halting_logits(hidden, images, conditions), self.latents(hidden, images)
        out: dict[str, Any] = {"halting": halting}
        if self.quantizer is not None:
            quantised = self.quantizer(values)
            values = quantised.latents
            out |= {"ids": quantised.ids} | {f"loss_{key}": value for key, value in quantised.losses.items()}
        kept = self.keep_mask(halting.detach()) if masked else None
        options = {"kept": kept, "mixed": self.config.mixed_masks}
        if not self._base_frozen:
            out["out"], out["reconstruction"] = self.decode_latents(values, **options)
            return out
        out["out"] = self.decoder(values, **options)
        out["features"] = self.base.features(out["out"])
        if not masked:
            with torch.no_grad():
                out["reconstruction"] = self.base.decode(out["out"])
        return out

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """``uniform`` and, of the ``kl`` base, ``noise`` of one image; see ``Tokenizer.draw``."""
        return {"uniform": torch.rand((), generator=generator), **super().draw(generator)}

    def draw_count(self, generator: torch.Generator | None = None) -> int:
        """T of the first run, one for a whole batch, from a CPU generator."""
        low, high, step = self.config.train_counts
        return low + step * int(torch.randint((high - low) // step + 1, (1,), generator=generator))

    def forward_options(self, step: int, *, pixels: bool) -> dict[str, Any]:
        """What ``forward`` is told of a training step: nothing."""
        return {}

    def head_weight(self) -> Tensor:
        return self.decoder.head[2].weight

    # Helpers.

    @property
    def _is_linear(self) -> bool:
        return self.config.init != "random"

    def _checked_count(self, count: Any, *, name: str = "max_tokens") -> int:
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= self.num_tokens:
            raise VistokError(f"{self._label} gives 1 to {self.num_tokens} tokens, so {name}={count!r} cannot be had")
        return count

    def _exact_lengths(self, length: int | Sequence[int] | Tensor, batch: int) -> list[int]:
        values = length.tolist() if isinstance(length, Tensor) else length
        lengths = list(values) if isinstance(values, (list, tuple)) else [values] * batch
        if len(lengths) != batch:
            raise VistokError(f"length is one whole number, or one for each of {batch} images, got {length!r}")
        return [self._checked_count(value, name="length") for value in lengths]

    @torch.no_grad()
    def _init_weights(self) -> None:
        """As ``_init_normal``, and a condition is its own value."""
        self._init_normal(
            (
                self.encoder,
                self.halting_head,
                *([] if self.config.init == "progressive" else [self.to_latents]),
                self.decoder,
            ),
            tokens=(self.encoder, self.decoder),
        )
        for row, error in enumerate(ERRORS):
            nn.init.constant_(self.encoder.conditions[row], error)
        if self._is_linear:
            # The transformers start as "add nothing"; what feeds tokens into the decoder must not start small, or the
            # gradient that teaches them never arrives.
            for name, module in self.named_modules():
                if isinstance(module, nn.Linear) and ".blocks." in name:  # 0.02 is far too little at small widths
                    nn.init.normal_(module.weight, std=module.in_features**-0.5)
            heads = () if self.config.init == "progressive" else (self.to_latents,)
            for head in (*heads, self.decoder.head[2], self.halting_head[2]):
                nn.init.zeros_(head.weight)
            for embed in (self.decoder.latent_embed, self.linear_embed):
                nn.init.normal_(embed.weight, std=0.5 * embed.weight[0].numel() ** -0.5)


def join_gaps(codes: Tensor, gaps: Tensor, codebook_size: int) -> Tensor:
    """Ids of codes and of the numbers of deleted positions just before them; without deletions the codes themselves."""
    return codes + codebook_size * gaps


def split_gaps(ids: Tensor, codebook_size: int) -> tuple[Tensor, Tensor]:
    """The way back of ``join_gaps``: codes and gaps."""
    return ids % codebook_size, ids // codebook_size
