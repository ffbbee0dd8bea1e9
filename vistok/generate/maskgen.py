"""``maskgen``: text to image over the tokens of TA-TiTok, filled in a few steps, several at a time.

Paper: Democratizing Text-to-Image Masked Generative Models (arXiv:2501.07730). Matches the published
``maskgen_vq_{l,xl}`` (ids) and ``maskgen_kl_{l,xl}`` (latents, drawn by a diffusion head as in MAR,
arXiv:2406.11838). Joint blocks over tokens and the states of a caption (CLIP ViT-L/14-336, before its
last block), modulated by the caption's embedding and an aesthetic score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vistok.errors import ConfigError, VistokError
from vistok.generate.base import GenerationResult
from vistok.generate.captions import CaptionCondition, read_captions
from vistok.generate.config import GeneratorConfig, check_heads, check_shares
from vistok.generate.masked import (
    Filled,
    MaskedGenerator,
    MaskedSamplingConfig,
    RowNoise,
    StepNoise,
    fill_ids,
    masked_loss,
    masks_of,
)
from vistok.generate.maskgen_sides import IdSide, LatentSide, counts_left
from vistok.generate.sampling import row_noise, row_normals, uniforms_of
from vistok.layers.joint_transformer import AdaptiveNorm, JointBlock, JointTransformer
from vistok.layers.positions import timestep_features
from vistok.tokens import Tokens


@dataclass(frozen=True)
class MaskGenSampling(MaskedSamplingConfig):
    """How tokens are filled in.

    Ids follow all of ``MaskedSamplingConfig``; of latents, whose noise ``temperature`` multiplies, only
    ``steps`` and guidance count, and this:

    Attributes:
        diffusion_steps: of drawing latents.
        clip_denoised: cut the latents that a diffusion step points to at this many standard deviations (of a ``latent_scale``
            that is right); steadies models of short training. 0 does not, as published.
    """

    diffusion_steps: int = 100
    clip_denoised: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.diffusion_steps <= 1000:
            raise ConfigError(f"diffusion_steps is from 2 to 1000; got {self.diffusion_steps}")
        if not 0.0 <= self.clip_denoised < float("inf"):
            raise ConfigError(f"clip_denoised is 0 (off) or above; got {self.clip_denoised}")


@dataclass(frozen=True)
class MaskGenConfig(GeneratorConfig):
    """Configuration of ``MaskGen``.

    Attributes:
        kind: ``vq`` makes ids, ``kl`` latents.
        num_tokens: L.
        codebook_size: of ids: K, or the factors of which it is the product; None for latents.
        spare_rows: rows of the table of ids that nothing reads (published tables have some for classes).
        code_dim: C of latents.
        latent_scale: latents are multiplied by it, so that they have about unit variance.
        width, depth, num_heads: of the transformer.
        head_width, head_depth: of the diffusion head.
        text_tower: what reads captions: ``ARCHITECTURE:WEIGHTS`` of open_clip, or ``ARCHITECTURE`` for random weights.
        text_dim: channels of the states of a caption, and of its embedding.
        micro_dim: features of the aesthetic score; 0 leaves it out.
        aesthetic_score: where a condition has none of its own.
        text_dropout: the share of training rows whose caption is hidden, so that guidance works.
        label_smoothing, unmasked_weight: of the loss of ids; what visible tokens count beside hidden ones.
        sampling: the defaults of ``generate``.
    """

    kind: Literal["vq", "kl"] = "vq"
    num_tokens: int = 128
    codebook_size: int | tuple[int, ...] | None = 8192
    spare_rows: int = 0
    code_dim: int = 16
    latent_scale: float = 0.7525
    width: int = 1024
    depth: int = 16
    num_heads: int = 16
    head_width: int = 1024
    head_depth: int = 8
    text_tower: str = "ViT-L-14-336:openai"
    text_dim: int = 768
    micro_dim: int = 256
    aesthetic_score: float = 6.5
    text_dropout: float = 0.1
    label_smoothing: float = 0.1
    unmasked_weight: float = 0.1
    sampling: MaskGenSampling = field(default_factory=MaskGenSampling)

    def __post_init__(self) -> None:
        if (self.codebook_size is None) != (self.kind == "kl") or (self.kind == "vq" and self.vocab_size < 2):
            raise ConfigError(
                f"kind vq has a codebook_size of two or more, kind kl has null; got {self.kind} and {self.codebook_size}"
            )
        sizes = ("num_tokens", "code_dim", "width", "depth", "num_heads", "head_width", "head_depth", "text_dim")
        wrong = [name for name in sizes if getattr(self, name) < 1]
        if wrong or self.spare_rows < 0:
            raise ConfigError(f"{', '.join(wrong) or 'spare_rows'} is below {1 if wrong else 0}")
        check_heads(self.width, self.num_heads)
        if self.micro_dim < 0 or self.micro_dim % 2:
            raise ConfigError(f"micro_dim is 0 (off) or even, got {self.micro_dim}")
        check_shares(self, ("text_dropout", "label_smoothing"))
        if not 0.0 <= self.unmasked_weight <= 1.0:
            raise ConfigError(f"unmasked_weight is from 0 to 1, got {self.unmasked_weight}")
        if not 0.0 < self.latent_scale < float("inf"):
            raise ConfigError(f"latent_scale is above 0, got {self.latent_scale}")


class MaskGen(MaskedGenerator):
    """Fills in tokens under a caption."""

    family = "maskgen"
    config_class = MaskGenConfig
    config: MaskGenConfig

    def __init__(self, config: MaskGenConfig) -> None:
        super().__init__(config)
        width = config.width
        self.text_proj = nn.Linear(config.text_dim, width)
        self.pooled_proj = nn.Linear(config.text_dim + config.micro_dim, width)
        self.side: IdSide | LatentSide
        if config.kind == "vq":
            self.side = IdSide(config.vocab_size, config.num_tokens, width, spare_rows=config.spare_rows)
        else:
            head = {"head_width": config.head_width, "head_depth": config.head_depth}
            self.side = LatentSide(config.code_dim, config.num_tokens, width, **head)
        self.transformer = JointTransformer(width, config.depth, config.num_heads)
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        # Blocks begin as the identity (adaLN-zero, arXiv:2212.09748).
        for module in self.transformer.modules():
            if isinstance(module, AdaptiveNorm):
                nn.init.zeros_(module.modulation.weight)
            if isinstance(module, JointBlock):
                nn.init.zeros_(module.modulation.weight)
                if not module.last:
                    nn.init.zeros_(module.text_modulation.weight)
        self.side.init_weights()

    @property
    def num_tokens(self) -> int:
        return self.config.num_tokens

    @property
    def codebook_size(self) -> int | tuple[int, ...] | None:
        return self.config.codebook_size

    @property
    def continuous(self) -> bool:
        return self.config.kind == "kl"

    @property
    def conditional(self) -> bool:
        return True

    @property
    def guidable(self) -> bool:
        return self.config.text_dropout > 0

    def no_weight_decay(self) -> tuple[str, ...]:
        return ("*pos_embed", "side.mask_token", "side.embed.*")

    def encode_condition(self, condition: Any) -> CaptionCondition:
        """Captions, one or many, or their features (``CaptionCondition``); None is the empty caption."""
        features = read_captions(condition, self.config.text_tower, self.device, title=self._title)
        got = (features.states.shape[-1], features.pooled.shape[-1])
        if set(got) != {self.config.text_dim}:
            raise VistokError(
                f"{self._title} reads captions with {self.config.text_dim} channels, got states of {got[0]} and "
                f"embeddings of {got[1]}; make them with {self.config.text_tower}"
            )
        return features.to(self.device, self.dtype)

    def training_condition(self, batch: Mapping[str, Any]) -> CaptionCondition:
        return self.encode_condition(list(batch["caption"]))

    def states(self, tokens: Tensor, masked: Tensor, condition: CaptionCondition) -> Tensor:
        """What the transformer makes of partly hidden tokens.

        Args:
            tokens: int64 [B, L]; or latents [B, L, C], scaled.
            masked: bool [B, L], True where hidden.
            condition: B rows.
        Returns:
            [B, L, D]; for latents, what the diffusion head reads.
        """
        pooled = condition.pooled
        if self.config.micro_dim:
            scores = condition.scores
            scores = torch.full_like(pooled[:, 0], self.config.aesthetic_score) if scores is None else scores
            pooled = torch.cat([pooled, self.micro_features(scores).to(pooled.dtype)], dim=-1)
        text = self.text_proj(condition.states)
        hidden = self.transformer(self.side(tokens, masked), text, self.pooled_proj(pooled))
        return self.side.conditions(hidden) if self.continuous else hidden

    def micro_features(self, scores: Tensor) -> Tensor:
        """Aesthetic scores [B] -> [B, micro_dim]; each kind has sinusoids of its own."""
        dim, scores = self.config.micro_dim, 100.0 * scores.float()
        if not self.continuous:
            cos, sin = timestep_features(scores, dim, max_period=1000.0).chunk(2, dim=-1)
            return torch.cat([sin, cos], dim=-1)
        # These have frequencies of double precision, rounded once: times several hundred, the difference shows.
        frequencies = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        angles = scores[:, None] * frequencies.float().to(scores.device)
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)

    def forward(
        self,
        ids: Tensor,
        condition: CaptionCondition | None = None,
        *,
        lengths: Tensor | None = None,
        sample_seeds: Tensor | None = None,
        progress: float = 0.0,
    ) -> dict[str, Tensor]:
        """The training loss: of the hidden ids (cross-entropy), or of the hidden latents (denoising).

        How many are hidden follows the arccosine of a uniform number; see ``Generator.forward``.
        """
        del progress  # nothing changes in the course of its training
        self._check_whole(ids, lengths)
        rows, channels = len(ids), self.config.code_dim if self.continuous else 0
        condition = self._for_rows(self.encode_condition(None) if condition is None else condition, rows)
        num_draws = 2 + self.num_tokens * (2 + channels)
        draws = uniforms_of(ids.flatten(1)[:, 0], num_draws, sample_seeds).to(ids.device)
        dropped, ratio, rest = draws[:, 0], draws[:, 1], draws[:, 2:].unflatten(1, (self.num_tokens, -1))
        if self.training and self.guidable:
            condition = condition.hide(dropped < self.config.text_dropout)
        masked = masks_of(ratio, rest[..., 0])
        if not self.continuous:
            logits = self.side.logits(self.states(ids, masked, condition)).float()
            return masked_loss(
                logits,
                ids,
                masked,
                label_smoothing=self.config.label_smoothing,
                unmasked_weight=self.config.unmasked_weight,
            )
        latents = ids * self.config.latent_scale
        hidden = self.states(latents.to(self.dtype), masked, condition)
        timesteps = (rest[..., 1] * self.side.diffusion.num_steps).long()
        # Clear of 0 and 1, which no normal number stands for.
        noise = torch.special.ndtri(rest[..., 2:].double().clamp(1e-12, 1 - 1e-12)).float()
        losses = self.side.losses(latents.float(), hidden, timesteps, noise)
        loss = (losses * masked).sum() / masked.sum()
        return {"loss": loss, "denoising": loss.detach()}

    def position_logits(self, ids: Tensor, masked: Tensor, condition: CaptionCondition, position: int) -> Tensor:
        return self.side.logits(self.states(ids, masked, condition)[:, position])

    def _generate(
        self,
        condition: CaptionCondition,
        num: int,
        length: int,
        prefix: Tokens | None,
        seeds: Sequence[int],
        sampling: MaskGenSampling,
    ) -> GenerationResult:
        self._check_length(length)
        condition = condition[torch.arange(len(condition)).repeat_interleave(num)]
        if self.continuous:
            orders = row_noise(seeds, (self.num_tokens,)).argsort(dim=-1).to(self.device)
            noise = row_normals(seeds, (sampling.diffusion_steps, self.num_tokens, self.config.code_dim))
            latents, passes = self.fill_latents(condition, orders, noise.transpose(0, 1).to(self.device), sampling)
            tokens, scores = self.as_tokens(latents), {}
        else:
            filled = self.fill_ids(condition, RowNoise(seeds, length, sampling.steps, self.device), sampling)
            passes = filled.passes
            tokens = self.as_tokens(filled.ids)
            scores = {"log_probs": filled.log_probs, "draw_log_probs": filled.draw_log_probs}
        positions = self.num_tokens + condition.states.shape[1]
        return GenerationResult(tokens, tuple(seeds), passes * len(seeds) * positions, **scores)

    @torch.no_grad()
    def fill_ids(self, condition: CaptionCondition, noise: StepNoise, sampling: MaskGenSampling) -> Filled:
        """Ids under B captions; see ``vistok.generate.masked.fill_ids``."""
        both = CaptionCondition.cat([condition, condition.null()]) if sampling.guided else condition

        def read(ids: Tensor, masked: Tensor, guided: bool) -> tuple[Tensor, Tensor | None]:
            if not guided:
                return self.side.logits(self.states(ids, masked, condition)), None
            states = self.states(torch.cat([ids, ids]), torch.cat([masked, masked]), both)
            return self.side.logits(states).chunk(2)

        masked = torch.ones(len(condition), self.num_tokens, dtype=torch.bool, device=self.device)
        return fill_ids(read, masked, noise, sampling, late_guidance=True)

    @torch.no_grad()
    def fill_latents(
        self, condition: CaptionCondition, orders: Tensor, noise: Tensor, sampling: MaskGenSampling
    ) -> tuple[Tensor, int]:
        """Latents [B, L, C] from their noise, and how often the transformer read each row.

        Args:
            condition: B rows.
            orders: int64 [B, L]: a row's positions, the last to be filled first.
            noise: normal numbers [S, B, L, C], S diffusion steps for each position.
            sampling: its steps and guidance.
        """
        diffusion = self.side.diffusion.respaced(len(noise))
        both = CaptionCondition.cat([condition, condition.null()]) if sampling.guided else condition
        latents = torch.zeros(noise.shape[1:], device=self.device, dtype=torch.float32)
        left = self.num_tokens
        masked = torch.ones(orders.shape, dtype=torch.bool, device=self.device)
        passes = 0
        for count in counts_left(self.num_tokens, sampling.steps):
            if count == left:
                continue
            drawn = masked & torch.ones_like(masked).scatter(1, orders[:, :count], False)
            # Guidance counts the last step as if a token were left.
            scale = sampling.scale_at((self.num_tokens - max(1, count)) / self.num_tokens)
            x = latents.to(self.dtype)
            if sampling.guided:
                states = self.states(torch.cat([x, x]), torch.cat([masked, masked]), both)
                conditions, null = (half[drawn] for half in states.chunk(2))
            else:
                conditions, null = self.states(x, masked, both)[drawn], None
            passes += 2 if sampling.guided else 1
            latents[drawn] = self.side.sample(
                conditions,
                null,
                noise[:, drawn],
                diffusion,
                scale=scale,
                temperature=sampling.temperature,
                clip_denoised=sampling.clip_denoised,
            )
            masked, left = masked & ~drawn, count
        return latents / self.config.latent_scale, passes
