"""TiTok: an image as a short 1D sequence of tokens; with TA-TiTok and a house preset as options.

Papers: TiTok (arXiv:2406.07550), TA-TiTok (arXiv:2501.07730, a decoder that sees text). Matches
the checkpoints ``yucornetto/tokenizer_titok_*`` and ``turkeyju/tokenizer_tatitok_*``.

Notable:

- Three heads. ``proxy`` (stage 1 of the two-stage recipe) gives logits over the codes of
  MaskGIT-VQGAN; ``vqgan`` (stage 2) turns them softly into its code vectors and decodes these;
  ``pixels`` (single stage) gives pixels from patches and one convolution.
- Three quantizers: ``vq``, ``gaussian`` (continuous), and ``fsq`` for the house preset.
- ``tail_drop`` trains the decoder on random prefixes, which makes the tokens ordered and any
  prefix decodable (One-D-Piece, arXiv:2501.10064).
- ``init: linear`` (house) lays a frozen principal-component codec under the transformers, which
  then learn what it misses: this is what makes minutes on a CPU enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import ConfigError, VistokError, nearest
from vistok.layers.latent_transformer import LatentDecoder, LatentQueryEncoder
from vistok.layers.linear_codec import LinearCodec
from vistok.layers.progressive_codec import ProgressiveCodec
from vistok.models.base import Tokenizer
from vistok.models.maskgit_vqgan import MaskGitVqgan, MaskGitVqganConfig, make_pixel_decoder
from vistok.quantizers import DiagonalGaussian, FiniteScalarQuantizer, GaussianBottleneck, VectorQuantizer
from vistok.tokens import Tokens


@dataclass(frozen=True)
class TransformerSize:
    """Width, depth and heads of one side."""

    width: int
    depth: int
    num_heads: int

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.num_heads) < 1 or self.width % self.num_heads:
            raise ConfigError(
                f"width, depth and num_heads are at least 1, and the heads divide the width; "
                f"got {self.width}, {self.depth} and {self.num_heads}"
            )


SIZES = {
    "tiny": TransformerSize(128, 4, 4),
    "small": TransformerSize(512, 8, 8),
    "base": TransformerSize(768, 12, 12),
    "large": TransformerSize(1024, 24, 16),
}
# Log-uniform tail drop keeps everything this often, so that the full length is not undertrained.
_FULL_LENGTH_SHARE = 0.5
_LINEAR_LOGVAR = -6.0  # a standard deviation of 0.05, beside 0.4 of the components
_LINEAR = ("linear", "linear_mixed")  # the kinds of init with a linear codec under both transformers


@dataclass(frozen=True)
class TiTokConfig:
    """Everything that shapes a TiTok.

    Attributes:
        image_size: pixels a side.
        patch_size, decoder_patch_size: pixels a side of a patch, going in and coming out.
        encoder, decoder: ``small``, ``base``, ``large``, or a width, depth and number of heads.
        num_tokens: N.
        quantizer: ``vq``, ``gaussian`` (continuous latents) or ``fsq``.
        codebook_size, l2_norm, commitment_cost, cluster: of ``vq``.
        levels: of ``fsq``.
        code_dim: C, channels of a token (for ``fsq``, the number of levels).
        head: ``pixels``, ``proxy`` or ``vqgan``.
        legacy_layout: the two-stage checkpoints were trained with the encoder's [N, D] memory read
            as [D, N] before its output projection, so that every latent mixes values of many
            tokens. Their weights only work that way; leave it off for new models.
        vqgan: the proxy's sizes, for the heads ``proxy`` and ``vqgan``.
        text_length, text_dim: positions and channels of the text features of TA-TiTok; 0 for none.
        tail_drop: ``none``, ``uniform`` (One-D-Piece) or ``log_uniform`` (house; half of the steps at full length).
        init: ``random``; or (house; call ``fit_linear`` with training images before training) ``linear``, where a frozen
            linear codec lies under both transformers; ``linear_mixed``, the same with no order among its components; or ``progressive``, where a better one makes the tokens alone, without
            an encoder, and lies under the decoder.
    """

    image_size: int = 256
    patch_size: int = 16
    decoder_patch_size: int = 16
    encoder: str | TransformerSize = "small"
    decoder: str | TransformerSize = "small"
    num_tokens: int = 128
    quantizer: Literal["vq", "gaussian", "fsq"] = "vq"
    codebook_size: int = 4096
    code_dim: int = 12
    l2_norm: bool = True
    commitment_cost: float = 0.25
    cluster: bool = False
    levels: tuple[int, ...] = ()
    head: Literal["pixels", "proxy", "vqgan"] = "pixels"
    legacy_layout: bool = False
    vqgan: MaskGitVqganConfig = MaskGitVqganConfig()
    text_length: int = 0
    text_dim: int = 768
    tail_drop: Literal["none", "uniform", "log_uniform"] = "none"
    init: Literal["random", "linear", "linear_mixed", "progressive"] = "random"

    def __post_init__(self) -> None:
        for key in ("image_size", "patch_size", "decoder_patch_size", "num_tokens", "code_dim", "codebook_size"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} is at least 1, got {getattr(self, key)}")
        for key in ("encoder", "decoder"):
            size = getattr(self, key)
            if isinstance(size, str) and size not in SIZES:
                raise ConfigError(f"{key}: unknown size {size!r}; {nearest(size, SIZES)}")
        for key in ("patch_size", "decoder_patch_size"):
            if self.image_size % getattr(self, key):
                raise ConfigError(f"image_size {self.image_size} is not a multiple of {key} {getattr(self, key)}")
        if self.head != "pixels" and self.vqgan.image_size != self.image_size:
            raise ConfigError(
                f"head: {self.head} makes images with its proxy: image_size is {self.image_size}, and "
                f"vqgan.image_size {self.vqgan.image_size}; set both"
            )
        if self.quantizer == "fsq" and len(self.levels) != self.code_dim:
            raise ConfigError(f"fsq takes one level count a channel: code_dim is {self.code_dim}, levels {self.levels}")
        if self.init != "random" and (self.head != "pixels" or self.legacy_layout):
            raise ConfigError(f"init: {self.init} goes with head: pixels and the new layout")
        if self.init == "progressive" and (self.quantizer != "fsq" or len(set(self.levels)) != 1):
            raise ConfigError(
                f"init: progressive goes with fsq of one number of levels, got {self.quantizer} {self.levels}"
            )

    def size(self, side: Literal["encoder", "decoder"]) -> TransformerSize:
        """The transformer's size of one side."""
        size = getattr(self, side)
        return SIZES[size] if isinstance(size, str) else size


class TiTok(Tokenizer):
    """Encoder with latent queries, quantizer, decoder with mask tokens.

    Args:
        config: see ``TiTokConfig``.
    """

    family = "titok"
    config_class = TiTokConfig

    def __init__(self, config: TiTokConfig) -> None:
        super().__init__(config)
        enc, dec = config.size("encoder"), config.size("decoder")
        self.grid_size = config.image_size // config.decoder_patch_size
        if config.init != "progressive":
            self.encoder = LatentQueryEncoder(
                image_size=config.image_size,
                patch_size=config.patch_size,
                num_latents=config.num_tokens,
                width=enc.width,
                depth=enc.depth,
                num_heads=enc.num_heads,
            )
            moments = 2 if config.quantizer == "gaussian" else 1
            self.to_latents = nn.Linear(enc.width, moments * config.code_dim)
        self.quantizer = _make_quantizer(config)
        self.decoder = LatentDecoder(
            grid_size=self.grid_size,
            latent_dim=config.code_dim,
            num_latents=config.num_tokens,
            width=dec.width,
            depth=dec.depth,
            num_heads=dec.num_heads,
            text_length=config.text_length,
            text_dim=config.text_dim,
        )
        if config.head == "pixels":
            self.to_patches = nn.Linear(dec.width, 3 * config.decoder_patch_size**2)
            self.conv_out = nn.Conv2d(3, 3, 3, padding=1)
        else:
            # Two layers without a name of their own in the paper: D -> 2D -> logits.
            self.to_logits = nn.Sequential(
                nn.Linear(dec.width, 2 * dec.width), nn.Tanh(), nn.Linear(2 * dec.width, config.vqgan.codebook_size)
            )
        if config.head == "vqgan":
            self.pixel_codebook = nn.Parameter(torch.empty(config.vqgan.codebook_size, config.vqgan.code_dim))
            self.pixel_decoder = make_pixel_decoder(config.vqgan)
        if config.init != "random":
            patch = config.decoder_patch_size
            sizes = (config.image_size, config.num_tokens, config.code_dim)
            progressive = config.init == "progressive"
            self.linear = ProgressiveCodec(*sizes, config.levels[0]) if progressive else LinearCodec(*sizes)
            self.linear_embed = nn.Conv2d(3, dec.width, kernel_size=patch, stride=patch)
        self._encoder_frozen = False
        self._init_weights()

    # What the object is and can do.

    @property
    def codebook_size(self) -> int | tuple[int, ...] | None:
        return None if self.continuous else self.quantizer.codebook_size

    @property
    def ordered(self) -> bool:
        return self.config.tail_drop != "none"

    @property
    def continuous(self) -> bool:
        return self.config.quantizer == "gaussian"

    @property
    def conditional(self) -> bool:
        return self.config.text_length > 0

    def no_weight_decay(self) -> tuple[str, ...]:
        return (
            "*pos_embed",
            "*_token",
            "*latent_tokens",
            "*patch_embed.weight",
            "*latent_embed.weight",
            "*codebook",
        )

    # From images to tokens.

    def encode_latents(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] to latents before quantisation [B, N, C] (moments [B, N, 2C] if gaussian)."""
        if self.config.init == "progressive":
            return self.linear.encode(images)
        hidden = self.encoder(images)  # [B, N, D]
        if self.config.legacy_layout:
            # Memory read as [D, N] without a transposition, as the published weights expect.
            batch, num_tokens, width = hidden.shape
            hidden = hidden.reshape(batch, width, num_tokens).transpose(1, 2)
        latents = self.to_latents(hidden)
        if self.config.init in _LINEAR:
            linear = self.linear.encode(images)
            # Of moments, the means; log-variances are the encoder's alone.
            latents = latents + F.pad(linear, (0, latents.shape[-1] - linear.shape[-1]))
        return latents

    def _encode_tokens(self, images: Tensor, *, generator: torch.Generator | None, length: int | None) -> Tokens:
        latents = self.encode_latents(images.to(self.device, self.dtype))
        names = {"family": self.family, "model": self.name, "weight_hash": self.weight_hash()}
        if self.continuous:
            posterior = self.quantizer(latents)
            values = posterior.mean if generator is None else posterior.sample(generator=generator)
            return Tokens(ids=None, latents=values, **names)
        return Tokens(ids=self.quantizer(latents).ids, codebook_size=self.codebook_size, **names)

    # From tokens to images.

    def decode_features(self, latents: Tensor, text: Tensor | None = None) -> Tensor:
        """Quantised latents [B, L, C] to the head's raw output.

        Returns:
            logits [B, h*w, K] over proxy codes for the heads ``proxy`` and ``vqgan``, else pixels
            [B, 3, H, W], not clamped.
        """
        self._check_text(text, len(latents))
        latents = latents.to(self.dtype)
        linear = self.linear.decode(latents) if self.config.init != "random" else None
        grid = None if linear is None else self.linear_embed(linear).flatten(2).transpose(1, 2)
        hidden = self.decoder(latents, text=text, grid=grid)  # [B, h*w, D]
        if self.config.head != "pixels":
            return self.to_logits(hidden)
        patch, size = self.config.decoder_patch_size, self.grid_size
        pixels = self.to_patches(hidden).view(-1, size, size, patch, patch, 3)  # h w (p1 p2 c)
        pixels = pixels.permute(0, 5, 1, 3, 2, 4).reshape(-1, 3, self.image_size, self.image_size)
        pixels = self.conv_out(pixels)
        return pixels if linear is None else pixels + linear

    def logits_to_pixels(self, logits: Tensor) -> Tensor:
        """Logits over proxy codes [B, h*w, K] to pixels: the expected code vector, decoded (stage 2)."""
        if self.config.head != "vqgan":
            raise VistokError(
                f"{self.name or self.family} is a stage-1 model: it gives logits over MaskGIT-VQGAN codes, not pixels; "
                "use model.with_pixel_decoder(maskgit_vqgan) to see images"
            )
        vectors = logits.softmax(dim=-1) @ self.pixel_codebook  # [B, h*w, C]
        return self.pixel_decoder(vectors.transpose(1, 2).unflatten(2, (self.grid_size, self.grid_size)))

    def decode_latents(self, latents: Tensor, text: Tensor | None = None) -> Tensor:
        """Quantised latents [B, L, C] to images [B, 3, H, W], not clamped."""
        features = self.decode_features(latents, text)
        return features if self.config.head == "pixels" else self.logits_to_pixels(features)

    @torch.no_grad()
    def decode(self, tokens: Tokens, *, condition: Tensor | None = None, clamp: bool = True) -> Tensor:
        """Tokens to images [B, 3, H, W]; see ``Tokenizer.decode``.

        Args:
            tokens: rows may differ in length where the tokens are ordered.
            condition: text features [B, T, E] (``vistok.models.text.ClipTextFeatures``) for TA-TiTok.
            clamp: cut the values to [0, 1].
        """
        self.check_tokens(tokens)
        self._check_text(condition, len(tokens))
        text = None if condition is None else condition.to(self.device, self.dtype)
        values = tokens.latents if self.continuous else self.quantizer.lookup(tokens.ids.to(self.device))
        values = values.to(self.device)
        images = values.new_empty(len(tokens), 3, self.image_size, self.image_size, dtype=torch.float32)
        lengths = tokens.lengths.to(self.device)
        for length in lengths.unique().tolist():  # rows of one length are one batch; nothing is padded
            rows = (lengths == length).nonzero()[:, 0]
            part = self.decode_latents(values[rows, :length], None if text is None else text[rows])
            images[rows] = part.float()
        return images.clamp_(0.0, 1.0) if clamp else images

    # Training.

    def forward(
        self,
        images: Tensor,
        *,
        text: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Training outputs for images [B, 3, H, W].

        Args:
            images: float RGB in [0, 1].
            text: text features [B, T, E] for TA-TiTok.
            noise: [B, N, C], the posterior's noise; drawn with ``generator`` where not given.
            generator: CPU generator of the noise and, in training mode, of the tail drop's length.
        Returns:
            ``reconstruction`` [B, 3, H, W] (or, for the head ``proxy``, ``logits`` [B, h*w, K]);
            ``ids`` [B, N] or ``kl`` [B, N]; the quantizer's ``loss_*`` terms.
        """
        out: dict[str, Tensor] = {}
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._encoder_frozen):
            bottleneck = self.quantizer(self.encode_latents(images))
            if isinstance(bottleneck, DiagonalGaussian):
                latents = bottleneck.sample(generator=generator, noise=noise)
                out["kl"] = bottleneck.kl()
            else:
                latents = bottleneck.latents
                out["ids"] = bottleneck.ids
                for key, value in bottleneck.losses.items():
                    out[f"loss_{key}"] = torch.zeros_like(value) if self._encoder_frozen else value
        if self.training and self.ordered:
            latents = latents[:, : self.draw_length(generator)]
        features = self.decode_features(latents, text)
        if self.config.head == "proxy":
            return out | {"logits": features}
        return out | {"reconstruction": features if self.config.head == "pixels" else self.logits_to_pixels(features)}

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """The posterior's ``noise`` [N, C] of a continuous model; see ``Tokenizer.draw``."""
        if not self.continuous:
            return {}
        return {"noise": torch.randn(self.num_tokens, self.config.code_dim, generator=generator)}

    def freeze_encoder(self) -> None:
        """Train the decoding half alone: encoder, queries and quantizer stay as they are (stage 2)."""
        self._encoder_frozen = True
        for module in self._encoding_half():
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> TiTok:
        """Set training mode; a frozen encoding half stays in evaluation mode."""
        super().train(mode)
        if self._encoder_frozen:
            for module in self._encoding_half():
                module.eval()
        return self

    def _encoding_half(self) -> tuple[nn.Module, ...]:
        networks = () if self.config.init == "progressive" else (self.encoder, self.to_latents)
        return (*networks, self.quantizer)

    def with_pixel_decoder(self, vqgan: MaskGitVqgan) -> TiTok:
        """A stage-2 model from this stage-1 model and MaskGIT-VQGAN's decoder and codes; the weights are copied."""
        if self.config.head != "proxy":
            raise VistokError(
                f"only a stage-1 model (head: proxy) lacks its pixel decoder; this one has head: {self.config.head}"
            )
        from dataclasses import replace

        full = TiTok(replace(self.config, head="vqgan", vqgan=vqgan.config)).to(self.device, self.dtype)
        state = {f"pixel_decoder.{key}": value for key, value in vqgan.decoder.state_dict().items()}
        full.load_weights({**self.state_dict(), **state, "pixel_codebook": vqgan.quantizer.codebook.detach()})
        return full.train(self.training)

    def fit_linear(self, images: Tensor) -> None:
        """Start any ``init`` but ``random`` from training images [M, 3, H, W] in [0, 1]: their principal components."""
        if self.config.init == "random":
            raise VistokError("fit_linear is for models with init: linear, linear_mixed or progressive")
        self.linear.fit(images, **({"mixed": True} if self.config.init == "linear_mixed" else {}))

    def draw_length(self, generator: torch.Generator | None) -> int:
        """One length for the whole batch, from the CPU generator, as One-D-Piece's training draws it."""
        if self.config.tail_drop == "uniform":
            return int(torch.randint(1, self.num_tokens + 1, (1,), generator=generator))
        full, position = torch.rand(2, generator=generator).tolist()
        return self.num_tokens if full < _FULL_LENGTH_SHARE else max(1, round(self.num_tokens**position))

    def _check_text(self, text: Tensor | None, batch: int) -> None:
        config, name = self.config, self.name or self.family
        if not self.conditional:
            if text is not None:
                raise VistokError(f"{name} takes no condition: it was not built for text features")
            return
        wanted = [batch, config.text_length, config.text_dim]
        if text is None or list(text.shape) != wanted:
            came = "none" if text is None else list(text.shape)
            raise VistokError(
                f"{name} decodes with text features {wanted}, got {came}; "
                "make them with vistok.models.text.ClipTextFeatures (an empty caption is fine)"
            )

    @torch.no_grad()
    def _init_weights(self) -> None:
        """Normal 0.02 (cut at +-2 absolute), zero biases, D^-1/2 for tokens and positions; attention's qkv Xavier."""
        for name, module in self.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                if name.endswith("attn.qkv"):
                    nn.init.xavier_uniform_(module.weight)
                else:
                    nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        sides = (self.decoder,) if self.config.init == "progressive" else (self.encoder, self.decoder)
        for side in sides:
            for _, parameter in side.named_parameters(recurse=False):
                nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        if self.config.head == "vqgan":
            nn.init.trunc_normal_(self.pixel_codebook, std=0.02)
        if self.config.init != "random":
            # The transformers start as "add nothing"; what feeds tokens into the decoder must not
            # start small, or the gradient that would order them never arrives.
            for name, module in self.named_modules():
                if isinstance(module, nn.Linear) and ".blocks." in name:  # 0.02 is far too little at small widths
                    nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(self.to_patches.weight)
            if self.config.init in _LINEAR:
                nn.init.zeros_(self.to_latents.weight)
                if self.continuous:
                    nn.init.constant_(self.to_latents.bias[self.config.code_dim :], _LINEAR_LOGVAR)
            nn.init.dirac_(self.conv_out.weight)
            for embed in (self.decoder.latent_embed, self.linear_embed):
                fan_in = embed.weight[0].numel()
                nn.init.normal_(embed.weight, std=0.5 * fan_in**-0.5)


def _make_quantizer(config: TiTokConfig) -> VectorQuantizer | FiniteScalarQuantizer | GaussianBottleneck:
    if config.quantizer == "gaussian":
        return GaussianBottleneck(config.code_dim)
    if config.quantizer == "fsq":
        return FiniteScalarQuantizer(config.levels)
    return VectorQuantizer(
        config.codebook_size,
        config.code_dim,
        commitment_cost=config.commitment_cost,
        l2_norm=config.l2_norm,
        cluster=config.cluster,
    )
