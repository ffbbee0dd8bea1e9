"""ALIT: tokens are added in rounds until an image is reconstructed well enough.

Paper: Adaptive Length Image Tokenization via Recurrent Allocation, arXiv:2411.02393. Matches the published ``alit_*``
checkpoints. KARL (``vistok.models.karl``) came from it and needs one pass instead of rounds.

Notable:

- A rollout distils the image, its remaining positions and the tokens so far into these tokens; a fresh group of latent
  tokens joins before the next one. All tokens change in every rollout.
- Positions of the map that a rollout already predicts confidently are masked for the next ones (VQGAN base only: the
  published code for the KL base masks none). Published encoding draws which, even at test time; here ``encode``
  masks all confident ones unless it is given a generator or the draws themselves.
- Each image stops for itself; published code stops a batch by its mean. Finished images are not computed further.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import ConfigError, VistokError
from vistok.layers.latent_transformer import LatentDecoder
from vistok.layers.transformer import Transformer
from vistok.models.adaptive import AdaptiveTokenizer
from vistok.models.grid_base import BaseKind, GridTargets, check_base
from vistok.models.ldm_kl import LdmKlConfig
from vistok.models.maskgit_vqgan import MaskGitVqganConfig
from vistok.models.titok import TransformerSize
from vistok.tokens import Tokens


@dataclass(frozen=True)
class AlitConfig:
    """Everything that shapes an ALIT; the defaults are those of ``alit_small`` on the VQGAN.

    Attributes:
        image_size, patch_size: pixels a side, of an image and of a position of the base's map.
        base: the grid tokenizer below: ``vqgan``, ``kl``, or ``pixels`` for none (house).
        vqgan, kl: its sizes.
        encoder, decoder: width, depth and heads of the two transformers.
        tokens_per_rollout, num_rollouts: how many tokens join at a time, and how often.
        max_tokens: positions that the decoder has for tokens.
        target_error: the mean absolute error at which ``encode`` stops when it is not told.
        masking: whether positions that are known are masked for the rollouts that follow (VQGAN base).
        mask_threshold: positions whose true code has at least this probability may be.
        quantizer: ``vq``, or ``none`` for continuous tokens.
        codebook_size, commitment_cost: of ``vq``, whose codes lie on the unit sphere.
        code_dim: C, channels of a token.
    """

    image_size: int = 256
    patch_size: int = 16
    base: BaseKind = "vqgan"
    vqgan: MaskGitVqganConfig = MaskGitVqganConfig()
    kl: LdmKlConfig = LdmKlConfig(pixels="unit")
    encoder: TransformerSize = TransformerSize(1024, 8, 8)
    decoder: TransformerSize = TransformerSize(1024, 8, 8)
    tokens_per_rollout: int = 32
    num_rollouts: int = 8
    max_tokens: int = 256
    target_error: float = 0.07
    masking: bool = True
    mask_threshold: float = 0.55
    quantizer: Literal["vq", "none"] = "vq"
    codebook_size: int = 4096
    commitment_cost: float = 0.25
    code_dim: int = 12

    def __post_init__(self) -> None:
        check_base(self.base, self.image_size, self.patch_size, self.vqgan, self.kl, self.encoder.width)
        if min(self.codebook_size, self.code_dim, self.tokens_per_rollout, self.num_rollouts) < 1:
            raise ConfigError("codebook_size, code_dim, tokens_per_rollout and num_rollouts are at least 1")
        if self.tokens_per_rollout * self.num_rollouts > self.max_tokens:
            raise ConfigError(
                f"the decoder has max_tokens={self.max_tokens} positions, and the rollouts make "
                f"{self.tokens_per_rollout * self.num_rollouts} tokens"
            )
        if not 0.0 <= self.target_error <= 1.0 or not 0.0 <= self.mask_threshold <= 1.0:
            raise ConfigError("target_error and mask_threshold lie in [0, 1]")


class RecurrentEncoder(nn.Module):
    """[class, map, latent tokens so far, fresh ones] through one transformer again and again.

    Args:
        channels: of the map that patches are added to.
        patch_size: pixels a side of a position.
        num_patches: positions of the map.
        group: latent tokens that join at a time.
        num_rollouts: how often.
        size: of the transformer.
    """

    def __init__(
        self, *, channels: int, patch_size: int, num_patches: int, group: int, num_rollouts: int, size: TransformerSize
    ) -> None:
        super().__init__()
        width = size.width
        self.num_fixed = num_patches + 1
        self.patch_embed = nn.Conv2d(3, width - channels, kernel_size=patch_size, stride=patch_size)
        self.cls_token = nn.Parameter(torch.empty(1, width))
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(num_patches + 1, width))
        self.latent_tokens = nn.Parameter(torch.empty(group, width))
        self.latent_pos_embed = nn.Parameter(torch.empty(group, width))
        self.rollout_embed = nn.Parameter(torch.empty(num_rollouts, group, width))
        self.norm_pre = nn.LayerNorm(width)
        self.norm_next = nn.LayerNorm(width)
        self.transformer = Transformer(width, size.depth, size.num_heads)

    def start(self, images: Tensor, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] and their map [B, h*w, C] -> the first rollout's input [B, 1 + h*w + group, D]."""
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)
        grid = F.normalize(torch.cat([latents.to(patches.dtype), patches], dim=-1), dim=-1)
        fixed = torch.cat([self.cls_token.expand(len(images), 1, -1), grid], dim=1) + self.pos_embed
        return self.norm_pre(self._join(fixed, 0))

    def roll(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A rollout's input -> its output, and the latent tokens in it."""
        x = self.transformer(x)
        return x, x[:, self.num_fixed :]

    def next(self, x: Tensor, drop: Tensor | None, rollout: int) -> Tensor:
        """A rollout's output -> the input of the next one, number ``rollout``.

        Args:
            x: [B, L, D].
            drop: bool [B, h*w], positions of the map to be masked.
            rollout: from 1.
        """
        if drop is not None:
            masked = self.pos_embed[1:] + self.mask_token
            grid = torch.where(drop[..., None], masked.to(x.dtype), x[:, 1 : self.num_fixed])
            x = torch.cat([x[:, :1], grid, x[:, self.num_fixed :]], dim=1)
        return self.norm_next(self._join(x, rollout))

    def _join(self, x: Tensor, rollout: int) -> Tensor:
        fresh = self.latent_tokens + self.latent_pos_embed + self.rollout_embed[rollout]
        return torch.cat([x, fresh.expand(len(x), -1, -1)], dim=1)


@dataclass
class Rollout:
    """What a rollout came to, for B images and n = (number + 1) * group tokens.

    Attributes:
        hidden: [B, n, D], the encoder's output.
        values: [B, n, C], latents before quantisation.
        quantised: [B, n, C], what the decoder sees.
        out: [B, h*w, O], what the decoder gives.
        ids: int64 [B, n], of ``vq``.
        losses: of the quantizer.
        certainty: [B, h*w], the probability of the true base code (VQGAN base).
        drop: bool [B, h*w], positions that are masked from here on.
    """

    hidden: Tensor
    values: Tensor
    quantised: Tensor
    out: Tensor
    ids: Tensor | None = None
    losses: Mapping[str, Tensor] | None = None
    certainty: Tensor | None = None
    drop: Tensor | None = None


class Alit(AdaptiveTokenizer):
    """Base, recurrent encoder, quantizer, decoder.

    Args:
        config: see ``AlitConfig``.
    """

    family = "alit"
    config_class = AlitConfig
    may_leave_out = ("encoder.mask_token", "encoder.rollout_embed", "encoder.norm_next")

    def __init__(self, config: AlitConfig) -> None:
        super().__init__(config)
        base = self.make_base()
        enc, dec = config.encoder, config.decoder
        self.encoder = RecurrentEncoder(
            channels=base.channels,
            patch_size=config.patch_size,
            num_patches=base.grid_size**2,
            group=config.tokens_per_rollout,
            num_rollouts=config.num_rollouts,
            size=enc,
        )
        self.norm_latents = nn.LayerNorm(enc.width)
        self.to_latents = nn.Linear(enc.width, config.code_dim)
        self.quantizer = self.make_vq() if config.quantizer == "vq" else None
        self.decoder = LatentDecoder(
            grid_size=base.grid_size,
            latent_dim=config.code_dim,
            num_latents=config.max_tokens,
            width=dec.width,
            depth=dec.depth,
            num_heads=dec.num_heads,
        )
        self.head = nn.Sequential(
            nn.Linear(dec.width, 2 * dec.width), nn.Tanh(), nn.Linear(2 * dec.width, base.out_channels)
        )
        self.base = base  # last, so that ``dtype`` is the trained part's
        heads = (self.to_latents, self.head)
        self._init_normal((self.encoder, self.decoder, *heads), tokens=(self.encoder, self.decoder))

    # What the object is and can do.

    @property
    def num_tokens(self) -> int:
        return self.config.tokens_per_rollout * self.config.num_rollouts

    @property
    def codebook_size(self) -> int | None:
        return None if self.continuous else self.config.codebook_size

    # From images to tokens.

    def rollouts(
        self,
        images: Tensor,
        latents: Tensor,
        goal: GridTargets | None,
        *,
        uniform: Sequence[Tensor] | Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[Rollout]:
        """One rollout after the other; send a tensor of rows to go on with these images only.

        Args:
            images: [B, 3, H, W].
            latents: [B, h*w, C], their map.
            goal: what the base's codes are, for masking; None masks nothing.
            uniform: [rollouts, B, h*w] in [0, 1), the draws that decide what is masked.
            generator: of these draws, image by image; without both, all confident positions are masked.
        """
        x = self.encoder.start(images, latents)
        ids = None if goal is None else goal.ids
        rows = torch.arange(len(images), device=images.device)
        for number in range(self.config.num_rollouts):
            x, hidden = self.encoder.roll(x)
            rollout = self._decode_rollout(hidden)
            if ids is not None:
                rollout.certainty = rollout.out.float().softmax(dim=-1).gather(2, ids[..., None])[..., 0]
                draws = None if uniform is None else uniform[number][rows]
                if draws is None and generator is not None:
                    size = rollout.certainty.shape[1]
                    draws = torch.stack([torch.rand(size, generator=generator) for _ in range(len(hidden))])
                rollout.drop = self._drop(rollout.certainty, draws) if self.config.masking else None
            chosen = yield rollout
            drop = rollout.drop
            if chosen is not None:
                x, rows = x[chosen], rows[chosen]
                ids = None if ids is None else ids[chosen]
                drop = None if drop is None else drop[chosen]
            if number + 1 < self.config.num_rollouts:
                x = self.encoder.next(x, drop, number + 1)

    def _decode_rollout(self, hidden: Tensor) -> Rollout:
        values = self.to_latents(self.norm_latents(hidden))
        if self.quantizer is None:
            return Rollout(hidden, values, values, self.decode_features(values))
        quantised = self.quantizer(values)
        return Rollout(
            hidden,
            values,
            quantised.latents,
            self.decode_features(quantised.latents),
            ids=quantised.ids,
            losses=quantised.losses,
        )

    def _drop(self, certainty: Tensor, uniform: Tensor | None) -> Tensor:
        """Positions to be masked: confident ones, and of these those whose draw says so."""
        drop = certainty.detach() >= self.config.mask_threshold
        return drop if uniform is None else drop & (uniform.to(certainty.device) < certainty.detach())

    def decode_features(self, quantised: Tensor) -> Tensor:
        """Quantised latents [B, n, C] -> what the base decodes, [B, h*w, O]."""
        return self.head(self.decoder(quantised.to(self.dtype)))

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
        uniform: Tensor | None = None,
        decode_options: Mapping[str, Any] | None = None,
    ) -> Tokens:
        """Turn images into tokens, rollout by rollout and without gradients, until each is good enough.

        Args:
            images: float RGB in [0, 1], shape [B, 3, H, W]; H = W = ``image_size``.
            target_error: an image stops after the first rollout whose reconstruction has a mean absolute error below
                this: one number for all or one for each. An image that never gets there has its best rollout.
                None: the configuration's (0.07).
            max_tokens: no more tokens than this, which makes for fewer rollouts. None: all rollouts.
            length: exactly so many tokens for each image, a multiple of ``tokens_per_rollout``; no target then.
            target, decode_options: of ordered tokenizers, whose length is searched for; refused here.
            generator: draws the masks and the sample of the ``kl`` base's posterior, as published encoding does; None
                masks all confident positions and takes the mean.
            noise: [B, C, h, w], that sample's noise itself.
            uniform: [rollouts, B, h*w] in [0, 1), the masks' draws themselves.
        Returns:
            ragged Tokens.
        Raises:
            VistokError: wrong shape, type or values.
        """
        self._refuse_search(target, decode_options)
        self.check_images(images)
        if length is not None and (max_tokens is not None or target_error is not None):
            raise VistokError("either a length or a target_error with max_tokens is wanted, got both")
        images = images.to(self.device, self.dtype)
        wanted = self.wanted_errors(target_error, len(images))
        exact = None if length is None else self._exact_lengths(length, len(images))
        count = self._num_rollouts(max_tokens) if exact is None else int(exact.max()) // self.config.tokens_per_rollout
        latents = self.base.encode(images, generator=generator, noise=noise)
        goal = self.base.targets(images, latents)
        group, batch = self.config.tokens_per_rollout, len(images)
        lengths = torch.zeros(batch, dtype=torch.int64, device=self.device)
        lowest = torch.full((batch,), torch.inf, device=self.device)
        best: Tensor | None = None
        rows = torch.arange(batch, device=self.device)
        rollouts = self.rollouts(images, latents, goal, uniform=uniform, generator=generator)
        rollout = next(rollouts)
        for number in range(count):
            values, now = rollout.values if rollout.ids is None else rollout.ids, (number + 1) * group
            if best is None:
                best = values.new_zeros(batch, count * group, *values.shape[2:])
            if exact is None:
                shown = self.base.decode(rollout.out).float()
                error = (shown - images[rows].float()).abs().flatten(1).mean(dim=1)
                finished = error < wanted[rows]
                better = finished | (error < lowest[rows])
            else:
                error = torch.zeros(len(rows), device=self.device)
                finished = better = exact[rows] == now
            improved = rows[better]
            best[improved, :now], lengths[improved], lowest[improved] = values[better], now, error[better]
            left = (~finished).nonzero()[:, 0]
            if not len(left) or number + 1 == count:
                break
            rows = rows[left]
            rollout = rollouts.send(left)
        best = best[:, : int(lengths.max())]
        names = {"family": self.family, "model": self.name, "weight_hash": self.weight_hash()}
        if self.continuous:
            return Tokens(latents=best.float(), lengths=lengths, **names)
        return Tokens(ids=best, lengths=lengths, codebook_size=self.codebook_size, **names)

    def _num_rollouts(self, max_tokens: int | None) -> int:
        group = self.config.tokens_per_rollout
        if max_tokens is None:
            return self.config.num_rollouts
        whole = isinstance(max_tokens, int) and not isinstance(max_tokens, bool)
        if not whole or not group <= max_tokens <= self.num_tokens:
            raise VistokError(
                f"{self._label} gives {group} to {self.num_tokens} tokens, so max_tokens={max_tokens!r} cannot be had"
            )
        return max_tokens // group

    def _exact_lengths(self, length: int | Sequence[int] | Tensor, batch: int) -> Tensor:
        values = length.tolist() if isinstance(length, Tensor) else length
        lengths = list(values) if isinstance(values, (list, tuple)) else [values] * batch
        group = self.config.tokens_per_rollout
        right = all(isinstance(value, int) and not isinstance(value, bool) for value in lengths)
        if not right or len(lengths) != batch or any(n % group or not group <= n <= self.num_tokens for n in lengths):
            raise VistokError(
                f"{self._label} gives multiples of {group} up to {self.num_tokens} tokens, one length for all or one "
                f"for each of {batch} images; got {length!r}"
            )
        return torch.tensor(lengths, device=self.device)

    # From tokens to images.

    @torch.no_grad()
    def decode(self, tokens: Tokens, *, condition: Any = None, clamp: bool = True) -> Tensor:
        """Tokens to images [B, 3, H, W]; see ``Tokenizer.decode``. Rows may differ in length."""
        self.check_tokens(tokens)
        self._refuse_condition(condition)
        tokens = tokens.to(self.device)
        values = tokens.latents if self.continuous else self.quantizer.lookup(tokens.ids)
        images = torch.empty(len(tokens), 3, self.image_size, self.image_size, device=self.device)
        for length in tokens.lengths.unique().tolist():  # rows of one length are one batch: there are few lengths
            rows = (tokens.lengths == length).nonzero()[:, 0]
            images[rows] = self.base.decode(self.decode_features(values[rows, :length])).float()
        return images.clamp_(0.0, 1.0) if clamp else images

    # Training.

    def forward(
        self,
        images: Tensor,
        *,
        rollout: int | None = None,
        noise: Tensor | None = None,
        uniform: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Any]:
        """All rollouts of images for training on latents, or one for training on pixels.

        Args:
            images: float RGB in [0, 1], [B, 3, H, W].
            rollout: the one whose reconstruction is wanted; None for all, on codes.
            noise: [B, C, h, w], of the ``kl`` base's posterior; without it, its mean.
            uniform: [B, rollouts, h*w] in [0, 1), decides what is masked; drawn in training mode where not given.
            generator: CPU generator of ``uniform``.
        Returns:
            ``runs``: a dict for each rollout that is learned from, with ``out`` [B, h*w, O], ``loss_commitment``,
            ``loss_codebook`` and ``ids`` of ``vq``, and ``reconstruction`` [B, 3, H, W] where ``rollout`` is given, else
            ``features`` [B, h*w, C], what is learned to be ``codes``;
            ``count``: tokens of the last of them; ``codes`` and, of the VQGAN, ``base_ids``: see ``GridTargets``.
        """
        config = self.config
        latents = self.encode_base(images, noise)
        goal = self.base.targets(images, latents)
        if uniform is None and self.training and goal.ids is not None:
            uniform = torch.rand(len(images), config.num_rollouts, goal.ids.shape[1], generator=generator)
        draws = None if uniform is None else uniform.transpose(0, 1).to(images.device)
        last = config.num_rollouts - 1 if rollout is None else rollout
        runs = []
        for number, found in enumerate(self.rollouts(images, latents, goal, uniform=draws)):
            if rollout in (None, number):
                run: dict[str, Any] = {"out": found.out}
                if found.losses is not None:
                    run |= {"ids": found.ids} | {f"loss_{key}": value for key, value in found.losses.items()}
                if rollout is None:
                    run["features"] = self.base.features(found.out)
                else:
                    run["reconstruction"] = self.base.decode(found.out)
                runs.append(run)
            if number == last:
                break
        return {
            "runs": runs,
            "count": (last + 1) * config.tokens_per_rollout,
            "codes": goal.codes,
            "base_ids": goal.ids,
        }

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """``uniform`` of the VQGAN base and ``noise`` of the ``kl`` base, of one image; see ``Tokenizer.draw``."""
        if self.config.base == "vqgan":
            return {"uniform": torch.rand(self.config.num_rollouts, self.base.grid_size**2, generator=generator)}
        return super().draw(generator)

    def forward_options(self, step: int, *, pixels: bool) -> dict[str, Any]:
        """What ``forward`` is told of a training step: on pixels, the rollouts take turns."""
        return {"rollout": step % self.config.num_rollouts} if pixels else {}

    def head_weight(self) -> Tensor:
        return self.head[2].weight
