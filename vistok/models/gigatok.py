"""GigaTok: a convolutional codec around query transformers, up to 2.9 billion parameters.

Paper: GigaTok (arXiv:2504.08736). Matches the checkpoints ``VQ_*256_*.pt`` of ``YuuTennYi/GigaTok``.

Notable:

- Images -> convolutions -> map -> transformer -> tokens -> vector quantisation -> transformer -> map ->
  convolutions. With ``layout: 1d`` the transformers read the map into a sequence and back; with ``2d``
  they stay on the grid.
- An inner layer of the decoder is aligned with a frozen vision network in training (``repa_dim``,
  ``repa_depth``): what lets it grow without becoming hard to generate from.
- Early in training the convolutions may be trained past the tokens too (``forward(direct=True)``).
- Of the decoder's tokens the first is special: all places of the map start from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import ConfigError, VistokError, nearest
from vistok.layers.conv import ConvDecoder, ConvEncoder
from vistok.layers.positions import sincos_2d
from vistok.layers.query_transformer import (
    MapToTokens,
    MapTransformer,
    ReadAttention,
    TokensToMap,
    check_pyramid,
    pyramid_cells,
)
from vistok.models.base import Tokenizer
from vistok.models.titok import TransformerSize
from vistok.quantizers import VectorQuantizer
from vistok.tokens import Tokens

SIZES = {
    "tiny": TransformerSize(256, 4, 4),
    "small": TransformerSize(512, 6, 8),
    "base": TransformerSize(768, 12, 12),
    "large": TransformerSize(1024, 24, 16),
    "xl": TransformerSize(1280, 36, 20),
    "xxl": TransformerSize(1536, 48, 24),
    "xxxl": TransformerSize(2560, 48, 40),
}
_NORM_GROUPS = 32
_LOCAL_POSITION = 2.0


@dataclass(frozen=True)
class GigaTokConfig:
    """Everything that shapes a GigaTok.

    Attributes:
        image_size: pixels a side.
        layout: ``1d`` or ``2d``: what the tokens are.
        base_channels: channels of the convolutions at full size, a multiple of 32.
        multipliers, decoder_multipliers: channels of each level as multiples of ``base_channels``; every level after the
            first halves the size.
        num_blocks: residual blocks a level of the encoder; the decoder has one more.
        map_channels: channels of the map between convolutions and transformers.
        conv_attention: attention among the convolutions, at the smallest size.
        adaptive_norm: the decoder's levels begin with a norm that the map steers.
        upsample: ``depth_to_space`` or ``nearest``.
        encoder, decoder: ``tiny``, ``small``, ``base``, ``large``, ``xl``, ``xxl``, ``xxxl``, or a width, depth and heads.
        num_tokens: of ``1d``; those of ``2d`` are the map's places.
        query_init: what the encoder's queries start from (``1d``), see ``MapToTokens``.
        layers: of ``2d``: ``reading`` or ``plain``, see ``MapTransformer``.
        qk_norm: normalise queries and keys head by head.
        codebook_size, code_dim, l2_norm, commitment_cost: of the quantizer.
        gradient: how it passes the quantizer, see ``VectorQuantizer``.
        entropy_weight: of the quantizer's entropy term; 0 for none.
        repa_dim: channels of the network that inner features are aligned with, for the head that projects them; 0 for no head.
        repa_depth: after how many of the decoder's blocks.
        usage_window: length of a record of ids that published checkpoints carry; nothing reads it. 0 for none.
        init: ``normal``: weights of 0.02 as published; or ``local`` (house): weights that keep the size of what passes,
            and attention that begins with what is near, so that minutes on a CPU are enough.
    """

    image_size: int = 256
    layout: Literal["1d", "2d"] = "1d"
    base_channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    decoder_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_blocks: int = 2
    map_channels: int = 256
    conv_attention: bool = False
    adaptive_norm: bool = True
    upsample: Literal["depth_to_space", "nearest"] = "depth_to_space"
    encoder: str | TransformerSize = "small"
    decoder: str | TransformerSize = "small"
    num_tokens: int = 256
    query_init: Literal["pyramid", "mean", "learned"] = "pyramid"
    layers: Literal["reading", "plain"] = "reading"
    qk_norm: bool = False
    codebook_size: int = 16384
    code_dim: int = 8
    l2_norm: bool = True
    commitment_cost: float = 0.25
    gradient: Literal["straight_through", "rotation"] = "rotation"
    entropy_weight: float = 0.0
    repa_dim: int = 768
    repa_depth: int = 3
    usage_window: int = 65536
    init: Literal["normal", "local"] = "normal"

    def __post_init__(self) -> None:
        counts = (
            "image_size",
            "base_channels",
            "num_blocks",
            "map_channels",
            "num_tokens",
            "codebook_size",
            "code_dim",
        )
        for key in counts:
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} is at least 1, got {getattr(self, key)}")
        for key in ("repa_dim", "usage_window", "entropy_weight", "commitment_cost"):
            if getattr(self, key) < 0:
                raise ConfigError(f"{key} is not negative, got {getattr(self, key)}")
        if not self.multipliers or min(self.multipliers + self.decoder_multipliers) < 1:
            raise ConfigError("multipliers and decoder_multipliers are at least 1, one a level")
        if len(self.multipliers) != len(self.decoder_multipliers):
            raise ConfigError(
                f"multipliers {self.multipliers} and decoder_multipliers {self.decoder_multipliers} have as many levels"
            )
        if self.base_channels % _NORM_GROUPS:
            raise ConfigError(
                f"base_channels is a multiple of {_NORM_GROUPS} (the norm's groups), got {self.base_channels}"
            )
        if self.image_size % self.downsampling:
            raise ConfigError(f"image_size is a multiple of {self.downsampling}, got {self.image_size}")
        for key in ("encoder", "decoder"):
            size = getattr(self, key)
            if isinstance(size, str) and size not in SIZES:
                raise ConfigError(f"{key}: unknown size {size!r}; {nearest(size, SIZES)}")
        depth = self.size("decoder").depth
        if not 1 <= self.repa_depth <= depth:
            raise ConfigError(f"repa_depth is 1 to the decoder's {depth} blocks, got {self.repa_depth}")
        if self.layout == "2d" and self.num_tokens != self.grid_size**2:
            raise ConfigError(
                f"layout: 2d has a token for each of {self.grid_size}x{self.grid_size} places; set num_tokens "
                f"{self.grid_size**2}, got {self.num_tokens}"
            )
        if self.layout == "1d" and self.layers != "reading":
            raise ConfigError("layers: plain is for layout: 2d: a sequence has to read the map")
        if self.layout == "1d" and self.query_init == "pyramid":
            check_pyramid(self.grid_size, self.num_tokens)
        if self.init == "local" and self.layout == "1d" and self.query_init != "pyramid":
            raise ConfigError(f"init: local places tokens by their pyramid; query_init is {self.query_init}")
        if self.init == "local" and any(self.size(side).width % 4 for side in ("encoder", "decoder")):
            raise ConfigError("init: local takes widths that are multiples of four")

    @property
    def downsampling(self) -> int:
        """Pixels a side of one place of the map."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def grid_size(self) -> int:
        """Height and width of the map."""
        return self.image_size // self.downsampling

    def size(self, side: Literal["encoder", "decoder"]) -> TransformerSize:
        """The transformer's size of one side."""
        size = getattr(self, side)
        return SIZES[size] if isinstance(size, str) else size


class GigaTok(Tokenizer):
    """A fixed-length tokenizer of images; see the module's text.

    Args:
        config: see ``GigaTokConfig``.

    Attributes:
        trains_past_tokens: ``forward`` knows ``direct`` and ``match_map``.
    """

    family = "gigatok"
    config_class = GigaTokConfig
    trains_past_tokens = True

    def __init__(self, config: GigaTokConfig) -> None:
        super().__init__(config)
        conv: dict[str, Any] = {
            "num_mid_blocks": 2,
            "bias": True,
            "shortcut": "input",
            "attention": config.conv_attention,
        }
        self.conv_encoder = ConvEncoder(
            config.base_channels,
            config.multipliers,
            config.num_blocks,
            config.map_channels,
            downsample="conv",
            out_kernel=3,
            **conv,
        )
        self.encoder, self.decoder = _make_transformers(config)
        width = config.size("decoder").width
        self.repa_head = _projection_head(width, config.repa_dim) if config.repa_dim else None
        self.conv_decoder = ConvDecoder(
            config.base_channels,
            config.decoder_multipliers,
            config.num_blocks + 1,
            config.map_channels,
            upsample=config.upsample,
            adaptive_norm=config.adaptive_norm,
            **conv,
        )
        self.to_latents = nn.Linear(config.map_channels, config.code_dim)
        self.from_latents = nn.Linear(config.code_dim, config.map_channels)
        self.quantizer = VectorQuantizer(
            config.codebook_size,
            config.code_dim,
            commitment_cost=config.commitment_cost,
            l2_norm=config.l2_norm,
            gradient=config.gradient,
            entropy_weight=config.entropy_weight,
        )
        if config.usage_window:
            self.register_buffer("recent_ids", torch.zeros(config.usage_window))
        self._init_weights()

    # What the object is.

    @property
    def codebook_size(self) -> int:
        return self.config.codebook_size

    # From images to tokens.

    def encode_map(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to the convolutions' map [B, C, h, w]."""
        return self.conv_encoder(2.0 * images - 1.0)

    def map_to_hidden(self, grid: Tensor) -> Tensor:
        """The convolutions' map [B, C, h, w] to tokens [B, N, C] before their projection."""
        if self.config.layout == "1d":
            return self.encoder(grid)
        return self.encoder(grid.flatten(2).transpose(1, 2))[0].flatten(2).transpose(1, 2)

    def encode_latents(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] to latents before quantisation [B, N, code_dim]."""
        return self.to_latents(self.map_to_hidden(self.encode_map(images)))

    def _encode_tokens(self, images: Tensor, *, generator: torch.Generator | None, length: int | None) -> Tokens:
        ids = self.quantizer(self.encode_latents(images.to(self.device, self.dtype))).ids
        return Tokens(
            ids=ids,
            codebook_size=self.codebook_size,
            family=self.family,
            model=self.name,
            weight_hash=self.weight_hash(),
        )

    # From tokens to images.

    def decode_map(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Quantised latents [B, N, code_dim] to the map [B, C, h, w] and inner features [B, h*w, D]."""
        return self.decoder(self.from_latents(latents.to(self.dtype)))

    def map_to_pixels(self, grid: Tensor) -> Tensor:
        """A map [B, C, h, w] to images [B, 3, H, W] around [0, 1], not clamped."""
        return (self.conv_decoder(grid) + 1.0) / 2.0

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Quantised latents [B, N, code_dim] to images [B, 3, H, W], not clamped."""
        return self.map_to_pixels(self.decode_map(latents)[0])

    @torch.no_grad()
    def decode(self, tokens: Tokens, *, condition: Any = None, clamp: bool = True) -> Tensor:
        """Tokens to images [B, 3, H, W]; see ``Tokenizer.decode``."""
        self.check_tokens(tokens)
        if condition is not None:
            raise VistokError(f"{self._label} takes no condition")
        images = self.decode_latents(self.quantizer.lookup(tokens.ids.to(self.device))).float()
        return images.clamp(0.0, 1.0) if clamp else images

    # Features.

    @torch.no_grad()
    def features(self, images: Tensor, *, part: Literal["encoder", "decoder"] = "encoder", pool: bool = True) -> Tensor:
        """Features of images for a linear probe, without gradients.

        Args:
            images: float RGB in [0, 1], shape [B, 3, H, W].
            part: the encoding transformer's normalised output, or the decoding transformer's stream after
                ``repa_depth`` blocks.
            pool: average over positions.
        Returns:
            [B, D], or [B, N, D] without ``pool``; D is the transformer's width.
        """
        self.check_images(images)
        grid = self.encode_map(images.to(self.device, self.dtype))
        if part == "encoder":
            one_d = self.config.layout == "1d"
            found = self.encoder.features(grid if one_d else grid.flatten(2).transpose(1, 2))
        elif part == "decoder":
            latents = self.quantizer(self.to_latents(self.map_to_hidden(grid))).latents
            found = self.decoder.features(self.from_latents(latents.to(self.dtype)))
        else:
            raise VistokError(f"features are of the encoder or of the decoder, not of {part!r}")
        return found.mean(dim=1) if pool else found

    # Training.

    def forward(
        self,
        images: Tensor,
        *,
        direct: bool = False,
        match_map: bool = False,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Training outputs for images [B, 3, H, W] in [0, 1].

        Args:
            images: float RGB in [0, 1].
            direct: decode the convolutions' own map too, past the tokens.
            match_map: draw the map made from tokens to the convolutions' own.
            generator: nothing is drawn.
        Returns:
            ``reconstruction`` [B, 3, H, W]; ``ids`` [B, N]; the quantizer's ``loss_*`` terms; with ``repa_dim``,
            ``projected`` [B, h, w, repa_dim]; with ``direct``, ``direct`` [B, 3, H, W]; with ``match_map``, the
            scalar ``map_error``.
        """
        own_map = self.encode_map(images)
        quantised = self.quantizer(self.to_latents(self.map_to_hidden(own_map)))
        grid, inner = self.decode_map(quantised.latents)
        out = {"reconstruction": self.map_to_pixels(grid), "ids": quantised.ids}
        out |= {f"loss_{key}": value for key, value in quantised.losses.items()}
        if self.repa_head is not None:
            side = self.config.grid_size
            out["projected"] = self.repa_head(inner).unflatten(1, (side, side))
        if direct:
            out["direct"] = self.map_to_pixels(own_map)
        if match_map:
            out["map_error"] = F.mse_loss(grid.float(), own_map.detach().float())
        return out

    @torch.no_grad()
    def _init_weights(self) -> None:
        """Normal 0.02 (cut at +-2 absolute) and zero biases, D^-1/2 for positions; torch's own around the quantizer."""
        local = self.config.init == "local"
        for part in (self.conv_encoder, self.encoder, self.decoder, self.repa_head, self.conv_decoder):
            for module in () if part is None else part.modules():
                if isinstance(module, (nn.Linear, nn.Conv2d)):
                    nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5 if local else 0.02)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
        for side in (self.encoder, self.decoder):
            for _, parameter in side.named_parameters(recurse=False):
                nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
            if local:
                self._init_local(side)
        if local:  # the steered norms begin as plain ones, and pictures as grey
            for norm in self.conv_decoder.adaptive:
                nn.init.ones_(norm.scale.bias)
                for layer in (norm.scale, norm.shift):
                    nn.init.zeros_(layer.weight)
            nn.init.trunc_normal_(self.conv_decoder.conv_out.weight, std=0.02)
        if self.config.l2_norm:
            self.quantizer.codebook.copy_(F.normalize(self.quantizer.codebook, dim=-1))

    def _init_local(self, side: MapToTokens | TokensToMap | MapTransformer) -> None:
        """Positions on the grid; a token is where the cell is that its query is the mean of; queries seek keys like them."""
        size, width = self.config.grid_size, side.pos_embed.shape[-1]
        grid = sincos_2d(size, size, width).to(side.pos_embed)
        grid = grid - grid.mean(dim=(2, 3), keepdim=True)
        grid = _LOCAL_POSITION * grid / grid.std()
        side.pos_embed.copy_(grid.flatten(2).transpose(1, 2))
        if self.config.layout == "1d":
            cells = [F.adaptive_avg_pool2d(grid, shape).flatten(2) for shape in pyramid_cells(self.num_tokens)]
            side.token_pos_embed.copy_(torch.cat(cells, dim=2).transpose(1, 2))
        for module in side.modules():
            if isinstance(module, ReadAttention):
                if module.qk_norm:
                    module.key.weight.copy_(module.query.weight)
                else:
                    module.qkv.weight[width : 2 * width] = module.qkv.weight[:width]


def _projection_head(width: int, out_dim: int) -> nn.Sequential:
    hidden = 4 * width
    return nn.Sequential(
        nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, out_dim)
    )


def _make_transformers(config: GigaTokConfig) -> tuple[MapToTokens | MapTransformer, TokensToMap | MapTransformer]:
    channels = config.map_channels
    shared = {"grid_size": config.grid_size, "qk_norm": config.qk_norm}
    sizes = [
        {"width": size.width, "depth": size.depth, "num_heads": size.num_heads}
        for size in (config.size("encoder"), config.size("decoder"))
    ]
    if config.layout == "2d":
        shared["layers"] = config.layers
        return (
            MapTransformer(channels, channels, kernel=1, **shared, **sizes[0]),
            MapTransformer(channels, channels, kernel=3, feature_depth=config.repa_depth, **shared, **sizes[1]),
        )
    shared["num_tokens"] = config.num_tokens
    return (
        MapToTokens(channels, channels, query_init=config.query_init, **shared, **sizes[0]),
        TokensToMap(channels, channels, feature_depth=config.repa_depth, **shared, **sizes[1]),
    )
