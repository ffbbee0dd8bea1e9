"""The configuration of FlexTok (arXiv:2502.13967): ``vistok.models.flextok``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vistok.errors import ConfigError
from vistok.layers.guidance import ApgConfig
from vistok.layers.kl_autoencoder import KlAutoencoderConfig
from vistok.layers.nested_dropout import NestedDropout


@dataclass(frozen=True)
class RegisterTransformerSize:
    """Width, depth and width of a head of one side."""

    width: int = 768
    depth: int = 12
    head_dim: int = 64

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.head_dim) < 1 or self.width % self.head_dim or self.width % 4:
            raise ConfigError(
                f"width, depth and head_dim are at least 1, and the width a multiple of head_dim and of 4; "
                f"got {self.width}, {self.depth} and {self.head_dim}"
            )


@dataclass(frozen=True)
class FlowSamplingConfig:
    """How ``decode`` samples when it is not told otherwise.

    Attributes:
        steps: Euler steps.
        guidance: scale of guidance; 1 for none, which halves the time.
        apg: adaptive projected guidance instead of the plain difference.
        apg_config: its settings.
    """

    steps: int = 25
    guidance: float = 7.5
    apg: bool = True
    apg_config: ApgConfig = ApgConfig()

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps is at least 1, got {self.steps}")


@dataclass(frozen=True)
class FlexTokConfig:
    """Everything that shapes a FlexTok; the defaults are those of d12-d12.

    Attributes:
        vae: the autoencoder's sizes, or ``none`` to work on pixels in [-1, 1].
        scaling_factor: of its latents; None takes the autoencoder's own (1 for pixels).
        sample_posterior: training sees samples of the posterior, not its mean.
        grid_size: height and width of the latent map in patches.
        patch_size: positions of the latent map a side of a patch.
        num_tokens: N, the number of registers.
        levels: of the FSQ.
        encoder, decoder: sizes of the two transformers.
        causal: registers see only those before them.
        modulation_kinds: 2 where patches and registers of the decoder are modulated apart.
        time_features, max_timestep: of the time embedding. Times lie in [0, 1] whatever this says.
        intermediate_layers: decoder blocks, counted from 0, whose patches are given out for alignment; the first one
            is used.
        repa_dim: channels of the network that these are aligned with, for the head that projects them; 0 for no head.
        repa_hidden: inner width of that head; 0 for twice the decoder's width.
        nested_dropout: how many tokens training keeps: ``uniform``, ``pow2``, ``uniform_pow2``, or ``none``.
        null_probability: share of images that train without any token, for guidance.
        drop_quant_probability: share of images that train with bounded, but not rounded, values.
        logit_normal: noise levels are sigmoid(N(0, 1)); else mode sampling.
        stratified: one logit-normal level from each of B equally likely intervals.
        mode_scale: of mode sampling; 0 gives uniform levels.
        bound: how latents are brought onto the levels of the FSQ: ``tanh`` as published, or ``clamp``.
        init: ``random``, or ``linear`` (house): a frozen linear codec and its exact flow lie under the
            transformers, which learn what they miss. Call ``fit_linear`` with training images before training.
        sampling: defaults of ``decode``.
    """

    vae: KlAutoencoderConfig | Literal["none"] = KlAutoencoderConfig()
    scaling_factor: float | None = None
    sample_posterior: bool = True
    grid_size: tuple[int, int] = (16, 16)
    patch_size: int = 2
    num_tokens: int = 256
    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    encoder: RegisterTransformerSize = RegisterTransformerSize()
    decoder: RegisterTransformerSize = RegisterTransformerSize()
    causal: bool = True
    modulation_kinds: Literal[1, 2] = 2
    time_features: int = 256
    max_timestep: float = 1000.0
    intermediate_layers: tuple[int, ...] = (1,)
    repa_dim: int = 0
    repa_hidden: int = 0
    nested_dropout: NestedDropout = "pow2"
    null_probability: float = 0.2
    drop_quant_probability: float = 0.0
    logit_normal: bool = False
    stratified: bool = False
    mode_scale: float = 0.25
    bound: Literal["tanh", "clamp"] = "tanh"
    init: Literal["random", "linear"] = "random"
    sampling: FlowSamplingConfig = FlowSamplingConfig()

    def __post_init__(self) -> None:
        if min(*self.grid_size, self.patch_size, self.num_tokens) < 1:
            raise ConfigError("grid_size, patch_size and num_tokens are at least 1")
        if self.time_features < 2 or self.time_features % 2 or self.max_timestep <= 0:
            raise ConfigError(
                f"time_features is even and max_timestep above 0, got {self.time_features} and {self.max_timestep}"
            )
        if any(not 0 <= layer < self.decoder.depth for layer in self.intermediate_layers):
            raise ConfigError(
                f"intermediate_layers are blocks 0..{self.decoder.depth - 1} of the decoder, got {self.intermediate_layers}"
            )
        if min(self.repa_dim, self.repa_hidden) < 0 or (self.repa_dim and not self.intermediate_layers):
            raise ConfigError(
                "repa_dim and repa_hidden are not negative, and repa_dim needs one of intermediate_layers"
            )
        for key in ("null_probability", "drop_quant_probability"):
            if not 0.0 <= getattr(self, key) <= 1.0:
                raise ConfigError(f"{key} lies in [0, 1], got {getattr(self, key)}")
        if self.init == "linear" and (self.vae != "none" or self.bound != "clamp" or len({*self.map_size}) > 1):
            raise ConfigError("init: linear goes with vae: none, bound: clamp and a square grid_size")
        if self.scaling_factor == 0.0:
            raise ConfigError("scaling_factor is not 0")

    @property
    def channels(self) -> int:
        """Channels of the map that the transformers see."""
        return 3 if self.vae == "none" else self.vae.latent_channels

    @property
    def scale(self) -> float:
        """What latents are multiplied with."""
        if self.scaling_factor is not None:
            return self.scaling_factor
        return 1.0 if self.vae == "none" else self.vae.scaling_factor

    @property
    def map_size(self) -> tuple[int, int]:
        """Height and width of that map."""
        return self.grid_size[0] * self.patch_size, self.grid_size[1] * self.patch_size

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of the images."""
        reduction = 1 if self.vae == "none" else self.vae.reduction
        return self.map_size[0] * reduction, self.map_size[1] * reduction
