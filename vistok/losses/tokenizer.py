"""What a tokenizer is trained on: reconstruction, perception, the bottleneck, alignment, and an adversary.

One class serves all recipes: cross-entropy against proxy codes where the model gives logits, pixel
losses where it gives pixels (the TiTok line, arXiv:2406.07550, section 3.3, arXiv:2501.07730), flow
matching where it gives a velocity (FlexTok, arXiv:2502.13967, section 3), alignment where it gives projected features
(GigaTok, arXiv:2504.08736, section 3.2). Terms are reported with their weights inside. Everything runs in fp32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import ConfigError
from vistok.losses.adversarial import LeCam, PatchDiscriminator, PatchGan, hinge_discriminator_loss
from vistok.losses.alignment import alignment_loss
from vistok.losses.diff_augment import diff_augment
from vistok.losses.flow_matching import flow_matching_loss
from vistok.losses.perceptual import PerceptualLoss, parse_perceptual

_QUANTIZER_TERMS = ("commitment", "codebook", "entropy")


@dataclass(frozen=True)
class TokenizerLossConfig:
    """Terms and weights.

    Attributes:
        reconstruction: ``l2`` (mean squared) or ``l1`` (mean absolute), or their weighted sum
            ``l2+l1`` as l2 + 0.2 l1.
        reconstruction_weight: of the term above.
        perceptual: see ``PerceptualLoss``; "" for none.
        perceptual_weight: of the perceptual term.
        quantizer_weight: of the quantizer's own losses.
        kl_weight: of a Gaussian bottleneck's divergence, summed over all latents, by image.
        logvar: the reconstruction is divided by exp of this (VAE recipes).
        adversarial_weight: of the generator's adversarial term; 0 for no discriminator.
        adversarial_start: the step from which the adversary takes part.
        lecam_weight: of the discriminator's LeCam term.
        discriminator: ``patch`` (the TiTok line's), ``patchgan`` (VQGAN's) or ``features`` (heads on a frozen network).
        discriminator_network: the frozen network of ``features``: ``lite0``, or a vision transformer of timm.
        discriminator_weight: the discriminator's own loss is multiplied by it.
        diff_augment: augment what the discriminator sees (``vistok.losses.diff_augment``).
        auxiliary_end: until the step before this one, the convolutions of a model that can do so are also trained past its
            tokens (GigaTok); 0 for never.
        direct_weight: of that direct reconstruction's pixel, perceptual and adversarial terms; 0 for none.
        map_weight: of drawing the map made from tokens to the convolutions' own meanwhile; 0 for not.
        alignment: the frozen network that a model's projected features are aligned with (REPA): ``lite0``, or a
            vision transformer of timm; "" for none.
        alignment_size: side in pixels of what a transformer of timm is shown; None for the size it was trained with.
        alignment_weight: of that term.
        autoencoder: weights (name, hub id or path) of the frozen autoencoder in whose latents a model works.
        proxy: MaskGIT-VQGAN weights (name, hub id or path) whose codes are the targets of a model
            with the head ``proxy``.
        pretrained: False leaves the helping networks (perceptual, proxy, text, teacher, autoencoder) random: tests and dry runs.
    """

    reconstruction: Literal["l2", "l1", "l2+l1"] = "l2"
    reconstruction_weight: float = 1.0
    perceptual: str = ""
    perceptual_weight: float = 0.0
    quantizer_weight: float = 1.0
    kl_weight: float = 1e-6
    logvar: float = 0.0
    adversarial_weight: float = 0.0
    adversarial_start: int = 0
    lecam_weight: float = 0.001
    discriminator: Literal["patch", "patchgan", "features"] = "patch"
    discriminator_network: str = "vit_small_patch16_224.dino"
    discriminator_weight: float = 1.0
    diff_augment: bool = False
    auxiliary_end: int = 0
    direct_weight: float = 1.0
    map_weight: float = 1.0
    alignment: str = ""
    alignment_size: int | None = None
    alignment_weight: float = 1.0
    autoencoder: str = "flextok_vae_c16.dfn"
    proxy: str = "maskgit_vqgan.imagenet"
    pretrained: bool = True

    def __post_init__(self) -> None:
        if self.perceptual:
            parse_perceptual(self.perceptual)
        if self.perceptual_weight and not self.perceptual:
            raise ConfigError("perceptual_weight is set, and perceptual names no network")


class TokenizerLoss(nn.Module):
    """The generator's and the discriminator's losses.

    Args:
        config: terms and weights.
    """

    def __init__(self, config: TokenizerLossConfig) -> None:
        super().__init__()
        self.config = config
        uses_perceptual = config.perceptual and config.perceptual_weight
        self.perceptual = PerceptualLoss(config.perceptual, pretrained=config.pretrained) if uses_perceptual else None
        self.discriminator = _make_discriminator(config) if config.adversarial_weight else None
        self.lecam = LeCam() if config.adversarial_weight else None

    def adversary_is_on(self, step: int) -> bool:
        """Whether the discriminator takes part at this step."""
        return self.discriminator is not None and step >= self.config.adversarial_start

    def forward_options(self, step: int) -> dict[str, bool]:
        """What a model that can be trained past its tokens is asked for at this step; see ``GigaTok.forward``."""
        config = self.config
        if step + 1 >= config.auxiliary_end:
            return {}
        return {"direct": config.direct_weight > 0.0, "match_map": config.map_weight > 0.0}

    def augment(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """What the discriminator sees of a batch [B, 3, H, W]."""
        return diff_augment(images, generator=generator) if self.config.diff_augment else images

    def generator(
        self,
        outputs: dict[str, Tensor],
        images: Tensor,
        step: int,
        *,
        codes: Tensor | None = None,
        features: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The tokenizer's loss.

        Args:
            outputs: of the tokenizer's ``forward``.
            images: [B, 3, H, W] in [0, 1].
            step: decides whether the adversary takes part.
            codes: int64 [B, h*w], the proxy's codes, for models that give logits.
            features: [B, H, W, E], the teacher's, for models that give ``projected`` ones.
            generator: CPU generator of what the discriminator's augmentation draws.
        Returns:
            the total, and its terms by name.
        """
        config = self.config
        with torch.autocast(images.device.type, enabled=False):
            terms: dict[str, Tensor] = {}
            if "velocity" in outputs:
                terms["flow"] = flow_matching_loss(outputs["velocity"], outputs["target"])
            elif "logits" in outputs:
                terms["reconstruction"] = F.cross_entropy(outputs["logits"].float().flatten(0, 1), codes.flatten())
            else:
                terms |= self._pixel_terms(outputs["reconstruction"].float(), images.float(), step, generator)
                if "kl" in outputs:  # a likelihood, as a variational autoencoder's is
                    terms["reconstruction"] = terms["reconstruction"] / math.exp(config.logvar)
            if "direct" in outputs:
                direct = self._pixel_terms(outputs["direct"].float(), images.float(), step, generator)
                terms |= {f"direct_{name}": config.direct_weight * value for name, value in direct.items()}
            if "map_error" in outputs:
                terms["map"] = config.map_weight * outputs["map_error"]
            if features is not None:
                terms["alignment"] = config.alignment_weight * alignment_loss(outputs["projected"], features)
            total = torch.stack(list(terms.values())).sum()
            if "loss_commitment" in outputs:
                parts = {key: outputs[f"loss_{key}"] for key in _QUANTIZER_TERMS if f"loss_{key}" in outputs}
                quantizer = config.quantizer_weight * torch.stack(list(parts.values())).sum()
                terms |= {"quantizer": quantizer} | parts
                total = total + quantizer
            if "kl" in outputs:
                terms["kl"] = config.kl_weight * outputs["kl"].float().sum() / len(images)
                total = total + terms["kl"]
        return total, terms

    def _pixel_terms(
        self, reconstruction: Tensor, images: Tensor, step: int, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        config = self.config
        pixel = images.new_zeros(())
        if "l2" in config.reconstruction:
            pixel = pixel + F.mse_loss(reconstruction, images)
        if "l1" in config.reconstruction:
            pixel = pixel + (0.2 if "l2" in config.reconstruction else 1.0) * F.l1_loss(reconstruction, images)
        terms = {"reconstruction": config.reconstruction_weight * pixel}
        if self.perceptual is not None:
            terms["perceptual"] = config.perceptual_weight * self.perceptual(images, reconstruction)
        if self.adversary_is_on(step):
            self.discriminator.requires_grad_(False)  # the gradient passes through it to the pixels only
            logits = self.discriminator(self.augment(reconstruction, generator))
            terms["adversarial"] = -config.adversarial_weight * logits.mean()
            self.discriminator.requires_grad_(True)
        return terms

    def discriminate(self, real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's loss for its logits of real and of (detached) reconstructed images."""
        with torch.autocast(real_logits.device.type, enabled=False):
            real, fake = real_logits.float(), fake_logits.float()
            hinge = hinge_discriminator_loss(real, fake)
            lecam = self.config.lecam_weight * self.lecam(real, fake).mean()
            total = self.config.discriminator_weight * hinge + lecam
        terms = {"discriminator": total, "lecam": lecam, "logits_real": real.mean(), "logits_fake": fake.mean()}
        return total, terms


def _make_discriminator(config: TokenizerLossConfig) -> nn.Module:
    if config.discriminator == "features":
        from vistok.losses.feature_discriminator import FeatureDiscriminator  # timm is slow to import

        return FeatureDiscriminator(config.discriminator_network, pretrained=config.pretrained)
    return PatchGan() if config.discriminator == "patchgan" else PatchDiscriminator()
