"""FlexTok: an image as 1 to 256 ordered tokens, decoded by a rectified flow.

Paper: FlexTok, arXiv:2502.13967. Matches the checkpoints ``EPFL-VILAB/flextok_*``.

Notable:

- An image goes through a frozen KL autoencoder first (or through none, ``vae: none``); registers
  appended to its latent patches become six numbers each, and those a token of 64,000 (FSQ).
- Registers see only those before them, and training drops their tail, so any prefix decodes.
- The decoder predicts the velocity of noised latents. It runs 2 x 25 times for an image, so its
  exact shortcut matters: all dropped registers, and all registers of the unconditional pass, are one row
  (see ``vistok.layers.ragged``). ``fast=False`` gives every register its row, as published.
- Published encoding samples the autoencoder's posterior; here ``encode`` takes its mean unless it
  is given a generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.layers.flow import add_noise, euler_sample, noise_levels, time_grid
from vistok.layers.guidance import AdaptiveProjectedGuidance, classifier_free_guidance
from vistok.layers.kl_autoencoder import KlAutoencoder, draw_noise, sample_posterior
from vistok.layers.linear_flow import LinearFlow
from vistok.layers.nested_dropout import draw_lengths
from vistok.layers.register_codec import (
    FlowDecoder,
    Modulations,
    ProjectionHead,
    RegisterCondition,
    RegisterEncoder,
)
from vistok.models.base import Tokenizer
from vistok.models.flextok_config import FlexTokConfig
from vistok.quantizers import FiniteScalarQuantizer
from vistok.seeds import stable_seed
from vistok.tokens import Tokens

Guidance = float | Callable[[float], float]


class FlexTok(Tokenizer):
    """Autoencoder, register encoder, FSQ, and a velocity network.

    Args:
        config: see ``FlexTokConfig``.
    """

    family = "flextok"
    config_class = FlexTokConfig

    def __init__(self, config: FlexTokConfig) -> None:
        super().__init__(config)
        enc, dec = config.encoder, config.decoder
        shared = {"channels": config.channels, "patch_size": config.patch_size, "grid_size": config.grid_size}
        self.encoder = RegisterEncoder(
            **shared,
            num_registers=config.num_tokens,
            width=enc.width,
            depth=enc.depth,
            head_dim=enc.head_dim,
            out_dim=len(config.levels),
            causal=config.causal,
        )
        self.quantizer = FiniteScalarQuantizer(config.levels, bound=config.bound)
        self.decoder = FlowDecoder(
            **shared,
            num_registers=config.num_tokens,
            latent_dim=len(config.levels),
            width=dec.width,
            depth=dec.depth,
            head_dim=dec.head_dim,
            kinds=config.modulation_kinds,
            time_features=config.time_features,
            max_timestep=config.max_timestep,
            feature_layer=config.intermediate_layers[0] if config.intermediate_layers else None,
            hints=config.init == "linear",
        )
        hidden = config.repa_hidden or 2 * dec.width
        self.repa_head = ProjectionHead(dec.width, hidden, config.repa_dim) if config.repa_dim else None
        self.linear = None
        if config.init == "linear":
            self.linear = LinearFlow(config.map_size[0], config.num_tokens, len(config.levels), config.patch_size)
        # Last, so that ``dtype`` is the trained part's.
        self.vae = None if config.vae == "none" else KlAutoencoder(config.vae)
        self._init_weights()

    # What the object is and can do.

    @property
    def image_size(self) -> int:
        return self.config.image_shape[0]

    @property
    def image_shape(self) -> tuple[int, int]:
        return self.config.image_shape

    @property
    def codebook_size(self) -> tuple[int, ...]:
        return self.quantizer.codebook_size

    @property
    def ordered(self) -> bool:
        return self.config.nested_dropout != "none"

    def no_weight_decay(self) -> tuple[str, ...]:
        return ("*_token", "*registers", "*pos_embed", "*patch_embed.weight", "*latent_embed.weight")

    # Between images and latents.

    def to_latents(
        self, images: Tensor, *, generator: torch.Generator | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to scaled latents [B, C, h, w], without gradients.

        Args:
            images: float RGB.
            generator: draws a sample of the posterior, image by image; without it and ``noise``, the mean.
            noise: [B, C, h, w], the posterior's noise.
        """
        if self.vae is None:
            return (2.0 * images - 1.0) * self.config.scale
        with torch.no_grad():
            mean, logvar = self.vae.moments(images)
            sampled = generator is not None or noise is not None
            latents = sample_posterior(mean, logvar, generator=generator, noise=noise) if sampled else mean
        return latents * self.config.scale

    def from_latents(self, latents: Tensor) -> Tensor:
        """Scaled latents [B, C, h, w] to images [B, 3, H, W] around [0, 1], not clamped."""
        latents = latents / self.config.scale
        return (latents + 1.0) / 2.0 if self.vae is None else self.vae.decode(latents)

    # From images to tokens.

    def _encode_tokens(self, images: Tensor, *, generator: torch.Generator | None, length: int | None) -> Tokens:
        # Published encoding samples the autoencoder's posterior, as a generator asks for; later registers are not
        # computed where they are not wanted.
        latents = self.to_latents(images.to(self.device), generator=generator)
        registers = self._registers(latents, length)
        return Tokens(
            ids=self.quantizer(registers).ids,
            codebook_size=self.codebook_size,
            family=self.family,
            model=self.name,
            weight_hash=self.weight_hash(),
        )

    # From tokens to images.

    @torch.no_grad()
    def decode(
        self,
        tokens: Tokens,
        *,
        condition: Any = None,
        clamp: bool = True,
        steps: int | None = None,
        guidance: Guidance | None = None,
        apg: bool | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        seed: int = 0,
        fast: bool = True,
    ) -> Tensor:
        """Tokens to images [B, 3, H, W], a sample of what they leave open.

        Where the flow starts: from ``noise``; else from numbers that ``generator`` draws, one image after the
        other; else from numbers that depend on ``seed`` and the image's first id, so that decoding is a
        function of the tokens, whatever else is in the batch, and prefixes of an image start alike.

        Args:
            tokens: rows may differ in length, 1..num_tokens.
            condition: None; there is none.
            clamp: cut the values to [0, 1].
            steps, guidance, apg: see ``FlowSamplingConfig``; None takes the configuration's. ``guidance`` may be a
                function of the time (1: noise, towards 0), which costs both passes at every step.
            generator: of the starting noise.
            noise: [B, C, h, w], the starting noise itself.
            seed: of the starting noise, where neither is given.
            fast: one row for all identical registers; the images are the same without, and take twice as long.
        Raises:
            VistokError: tokens of another model, or options that make no sense.
        """
        latents = self.decode_latents(
            tokens,
            condition=condition,
            steps=steps,
            guidance=guidance,
            apg=apg,
            generator=generator,
            noise=noise,
            seed=seed,
            fast=fast,
        )
        images = self.from_latents(latents)
        return images.clamp_(0.0, 1.0) if clamp else images

    @torch.no_grad()
    def decode_latents(
        self,
        tokens: Tokens,
        *,
        condition: Any = None,
        steps: int | None = None,
        guidance: Guidance | None = None,
        apg: bool | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        seed: int = 0,
        fast: bool = True,
    ) -> Tensor:
        """Tokens to scaled latents [B, C, h, w] fp32, without the autoencoder; options as for ``decode``."""
        self.check_tokens(tokens)
        if condition is not None:
            raise VistokError(f"{self._label} takes no condition: its tokens are all it decodes from")
        defaults = self.config.sampling
        steps = defaults.steps if steps is None else steps
        guidance = defaults.guidance if guidance is None else guidance
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise VistokError(f"{self._label} decodes in 1 step or more, got steps={steps!r}")
        if not (callable(guidance) or isinstance(guidance, (int, float))):
            raise VistokError(f"guidance is a number or a function of the time, got {guidance!r}")
        start = self._starting_noise(tokens, generator, noise, seed).to(self.device, torch.float32)
        lengths = tokens.lengths.tolist()
        codes = self.quantizer.lookup(tokens.ids[:, : max(lengths)].to(self.device))
        apg = defaults.apg if apg is None else apg
        projected = AdaptiveProjectedGuidance(defaults.apg_config) if apg else None
        combine = projected or classifier_free_guidance
        velocities = self._plain_velocities(codes, lengths)
        if fast:
            both = callable(guidance) or guidance != 1
            given = start if noise is not None else None
            velocities = self._fast_velocities(codes, lengths, steps, both=both, start=given)

        def guided(x: Tensor, index: int, time: float) -> Tensor:
            scale = guidance(time) if callable(guidance) else guidance
            both = callable(guidance) or guidance != 1
            conditional, unconditional = velocities(x, index, time, both)
            return combine(conditional, unconditional, scale) if both else conditional

        return euler_sample(guided, start, steps)

    def _fast_velocities(
        self, codes: Tensor, lengths: list[int], steps: int, *, both: bool, start: Tensor | None
    ) -> Callable[..., Any]:
        """Both passes in one batch, identical registers as one row, and the modulation of all steps beforehand.

        Images that start from the same given noise, as a search's candidates do, have the same unconditional velocity in the
        first step, which is computed once.
        """
        starts = places = None
        if both and start is not None:
            starts, places = torch.unique(start.flatten(1), dim=0, return_inverse=True)
        keep = [*lengths, *([0] * len(lengths) if both else [])]
        condition = self.decoder.condition(codes, keep, num_patches=self._num_patches)
        modulations = self.decoder.modulations(torch.tensor(time_grid(steps), device=codes.device))

        def velocities(x: Tensor, index: int, time: float, both: bool) -> tuple[Tensor, Tensor | None]:
            times = torch.tensor([time], device=x.device)
            if index == 0 and starts is not None and len(starts) < len(x):
                conditional = self.velocity(x, times.expand(len(x)), codes, lengths)
                one, zeros = starts.view(-1, *x.shape[1:]), [0] * len(starts)
                return conditional, self.velocity(one, times.expand(len(one)), codes[: len(one)], zeros)[places]
            velocity = self._velocity(x, times, modulations.at(index), condition, codes, keep)[0].float()
            return (velocity[: len(x)], velocity[len(x) :]) if both else (velocity, None)

        return velocities

    def _plain_velocities(self, codes: Tensor, lengths: list[int]) -> Callable[..., Any]:
        """Every register its row, and a pass and a modulation for each."""

        def velocities(x: Tensor, index: int, time: float, both: bool) -> tuple[Tensor, Tensor | None]:
            times = torch.full((len(x),), time, device=x.device)
            conditional = self.velocity(x, times, codes, lengths, fast=False)
            return conditional, self.velocity(x, times, codes, [0] * len(x), fast=False) if both else None

        return velocities

    def velocity(
        self, noised: Tensor, times: Tensor, codes: Tensor, keep: Sequence[int], *, fast: bool = True
    ) -> Tensor:
        """The predicted velocity noise - clean of noised latents, [B, C, h, w] fp32.

        Args:
            noised: [B, C, h, w].
            times: [B] in [0, 1]; 1 is pure noise.
            codes: [B, L, len(levels)], what ``quantizer.lookup`` gives for ids.
            keep: of each image, how many leading codes are read: 1..L, or 0 for the unconditional velocity.
            fast: see ``decode``.
        """
        condition = self.decoder.condition(codes, keep, num_patches=self._num_patches, fast=fast)
        modulations = self.decoder.modulations(times)
        return self._velocity(noised, times, modulations, condition, codes, keep)[0].float()

    def _registers(self, latents: Tensor, length: int | None = None) -> Tensor:
        """Clean scaled latents [B, C, h, w] -> registers before quantisation [B, L, len(levels)]."""
        registers = self.encoder(latents, length=length)
        return registers if self.linear is None else registers + self.linear.encode(latents)[:, :length]

    def _velocity(
        self,
        x: Tensor,
        times: Tensor,
        modulations: Modulations,
        condition: RegisterCondition,
        codes: Tensor,
        keep: Sequence[int],
    ) -> tuple[Tensor, Tensor | None]:
        """``FlowDecoder.forward``, on top of the linear flow where there is one."""
        if self.linear is None:
            return self.decoder(x, modulations, condition)
        known, hint = self.linear.velocity(x, times, codes, keep)
        velocity, features = self.decoder(x, modulations, condition, hint=hint)
        return known + velocity, features

    def decode_noise(self, seeds: Sequence[int]) -> dict[str, Tensor]:
        """The starting noise, a function of each row's seed."""
        draws = (torch.Generator().manual_seed(seed) for seed in seeds)
        return {"noise": torch.cat([draw_noise(1, self._map_shape, generator=draw) for draw in draws])}

    def decode_forwards(self, **options: Any) -> int:
        """The flow's steps, and twice as many with guidance."""
        defaults = self.config.sampling
        steps, guidance = (options.get(name) for name in ("steps", "guidance"))
        guidance = defaults.guidance if guidance is None else guidance
        return (defaults.steps if steps is None else steps) * (1 if guidance == 1 else 2)

    def _starting_noise(
        self, tokens: Tokens, generator: torch.Generator | None, noise: Tensor | None, seed: int
    ) -> Tensor:
        shape = self._map_shape
        if noise is not None:
            if generator is not None:
                raise VistokError("the starting noise is given, or drawn with the generator, not both")
            if not isinstance(noise, Tensor) or tuple(noise.shape) != (len(tokens), *shape):
                came = list(noise.shape) if isinstance(noise, Tensor) else type(noise).__name__
                raise VistokError(f"{self._label} starts from noise {[len(tokens), *shape]}, got {came}")
            return noise
        if generator is not None:
            return draw_noise(len(tokens), shape, generator=generator)
        rows = []
        for first_id in tokens.ids[:, 0].tolist():
            own = torch.Generator().manual_seed(stable_seed(self.family, seed, first_id))
            rows.append(draw_noise(1, shape, generator=own))
        return torch.cat(rows)

    # Training.

    def forward(
        self,
        images: Tensor,
        *,
        noise: Tensor | None = None,
        u: Tensor | None = None,
        keep: Tensor | Sequence[int] | None = None,
        drop: Tensor | Sequence[bool] | None = None,
        unrounded: Tensor | None = None,
        posterior_noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        fast: bool = True,
    ) -> dict[str, Tensor]:
        """Training outputs for images [B, 3, H, W]; what is random and not given is drawn.

        Args:
            images: float RGB in [0, 1].
            noise, u, keep, drop, unrounded, fast: see ``forward_latents``.
            posterior_noise: [B, C, h, w], of the autoencoder's posterior.
            generator: CPU generator of everything that is drawn.
        """
        if posterior_noise is None and self._samples_posterior and self.training:
            posterior_noise = draw_noise(len(images), self._map_shape, generator=generator)
        latents = self.to_latents(images, noise=posterior_noise)
        return self.forward_latents(
            latents, noise=noise, u=u, keep=keep, drop=drop, unrounded=unrounded, generator=generator, fast=fast
        )

    def fit_linear(self, images: Tensor) -> None:
        """Start ``init: linear`` from training images [M, 3, H, W] in [0, 1]: their principal components."""
        if self.linear is None:
            raise VistokError("fit_linear is for models with init: linear")
        self.linear.fit(self.to_latents(images), lambda latents: self.quantizer(latents).latents)

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """``noise``, ``u``, ``keep``, ``drop`` and, where used, ``unrounded`` and ``posterior_noise`` of one image."""
        config = self.config
        normal = config.logit_normal and not config.stratified
        out = {
            "noise": torch.randn(self._map_shape, generator=generator),
            "u": (torch.randn if normal else torch.rand)((), generator=generator),
            "keep": draw_lengths(config.nested_dropout, config.num_tokens, 1, generator=generator)[0],
            "drop": torch.rand((), generator=generator) < config.null_probability,
        }
        if config.drop_quant_probability:
            out["unrounded"] = torch.rand((), generator=generator) < config.drop_quant_probability
        if self._samples_posterior:
            out["posterior_noise"] = torch.randn(self._map_shape, generator=generator)
        return out

    def forward_latents(
        self,
        latents: Tensor,
        *,
        noise: Tensor | None = None,
        u: Tensor | None = None,
        keep: Tensor | Sequence[int] | None = None,
        drop: Tensor | Sequence[bool] | None = None,
        unrounded: Tensor | None = None,
        generator: torch.Generator | None = None,
        fast: bool = True,
    ) -> dict[str, Tensor]:
        """Training outputs for clean scaled latents [B, C, h, w] (see ``to_latents``).

        Args:
            latents: what the encoder reads, and the flow ends at.
            noise: [B, C, h, w], where the flow starts.
            u: [B], the random numbers behind the noise levels; see ``vistok.layers.flow.noise_levels``.
            keep: [B] in 1..num_tokens, how many leading tokens the decoder sees. Not given, it is
                drawn in training mode, and all are kept in evaluation mode.
            drop: bool [B], images of which the decoder sees no token. Not given, it is drawn in
                training mode, and none is dropped in evaluation mode.
            unrounded: bool [B], images whose tokens are bounded but not rounded. Not given, it is drawn in
                training mode where ``drop_quant_probability`` is above 0.
            generator: CPU generator of what is drawn, in this order: noise, u, keep, drop, unrounded.
            fast: one row for all identical registers; the numbers are the same without.
        Returns:
            ``velocity`` and its ``target`` [B, C, h, w]; ``ids`` [B, N]; ``noise_levels`` [B];
            ``noised`` [B, C, h, w]; ``keep`` int64 [B] and ``drop`` bool [B] on the CPU; with
            ``intermediate_layers``, ``features`` [B, P, D]; with ``repa_dim``, ``projected`` [B, h, w, E].
        """
        config, batch = self.config, len(latents)
        if noise is None:
            noise = draw_noise(batch, latents.shape[1:], generator=generator)
        if u is None:
            draw = torch.randn if config.logit_normal and not config.stratified else torch.rand
            u = draw(batch, generator=generator)
        keep, drop = self._drawn_dropout(batch, keep, drop, generator)
        noise, u = noise.to(latents), u.to(latents.device, torch.float32)
        levels = noise_levels(
            u, logit_normal=config.logit_normal, stratified=config.stratified, mode_scale=config.mode_scale
        )
        noised = add_noise(latents, noise, levels)
        if unrounded is None and self.training and config.drop_quant_probability:
            unrounded = torch.rand(batch, generator=generator) < config.drop_quant_probability
        unrounded = None if unrounded is None else unrounded.to(latents.device)
        quantised = self.quantizer(self._registers(latents), unrounded=unrounded)
        seen = torch.where(drop, 0, keep).tolist()
        condition = self.decoder.condition(quantised.latents, seen, num_patches=self._num_patches, fast=fast)
        if self.training:
            # Parameters that this batch happens not to use get a zero gradient instead of none, which
            # training on several devices needs.
            unused = self.decoder.mask_token.sum() + self.decoder.null_token.sum() + quantised.latents.sum()
            condition.rows.add_(0.0 * unused)
        modulations = self.decoder.modulations(levels)
        velocity, features = self._velocity(noised, levels, modulations, condition, quantised.latents, seen)
        out = {"velocity": velocity, "target": noise - latents, "ids": quantised.ids, "noise_levels": levels}
        out |= {"noised": noised, "keep": keep, "drop": drop}
        if features is not None:
            out["features"] = features
            if self.repa_head is not None:
                grid = (latents.shape[2] // config.patch_size, latents.shape[3] // config.patch_size)
                out["projected"] = self.repa_head(features).unflatten(1, grid)
        return out

    def _drawn_dropout(
        self,
        batch: int,
        keep: Tensor | Sequence[int] | None,
        drop: Tensor | Sequence[bool] | None,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        """Lengths and dropped images on the CPU, where the layout of the batch is decided."""
        config = self.config
        if keep is None:
            mode = config.nested_dropout if self.training else "none"
            keep = draw_lengths(mode, config.num_tokens, batch, generator=generator)
        if drop is None:
            share = config.null_probability if self.training else 0.0
            drop = torch.rand(batch, generator=generator) < share
        keep, drop = torch.as_tensor(keep).cpu().long(), torch.as_tensor(drop).cpu().bool()
        if keep.shape != (batch,) or drop.shape != (batch,):
            raise VistokError(f"keep and drop have one entry an image, {batch}; got {keep.tolist()}, {drop.tolist()}")
        if int(keep.min()) < 1 or int(keep.max()) > config.num_tokens:
            raise VistokError(f"{self._label} keeps 1 to {config.num_tokens} tokens, got {keep.tolist()}")
        return keep, drop

    # Helpers.

    @property
    def _map_shape(self) -> tuple[int, int, int]:
        return (self.config.channels, *self.config.map_size)

    @property
    def _samples_posterior(self) -> bool:
        return self.vae is not None and self.config.sample_posterior

    @property
    def _num_patches(self) -> int:
        return self.config.grid_size[0] * self.config.grid_size[1]

    @torch.no_grad()
    def _init_weights(self) -> None:
        """Xavier for linear layers, zero for heads, modulation and biases, normal 0.02 for tokens and positions."""
        for side in (self.encoder, self.decoder, self.repa_head):
            for module in side.modules() if side is not None else ():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
        decoder = self.decoder
        modulation = [*(block.modulation for block in decoder.blocks), decoder.head_modulation]
        for module in (*modulation, self.encoder.to_latents, decoder.to_patches):
            nn.init.zeros_(module.weight)
        tokens = (self.encoder.registers, decoder.register_pos_embed, decoder.mask_token, decoder.null_token)
        for parameter in tokens:
            nn.init.trunc_normal_(parameter, std=0.02)
        if decoder.hint_embed is not None:
            # Not small: with adaLN's gates closed at the start, small inputs would stay unseen for long.
            nn.init.normal_(decoder.hint_embed.weight, std=decoder.hint_embed.in_features**-0.5)
