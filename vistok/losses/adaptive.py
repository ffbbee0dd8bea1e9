"""What adaptive tokenizers are trained on: every run or rollout of an iteration has its terms, and they are added.

Stage ``latents`` learns the codes of the grid tokenizer below, which stays as it is; stage ``pixels`` trains everything
on pixels, perception and an adversary (KARL, arXiv:2507.07995, and ALIT, arXiv:2411.02393).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import ConfigError
from vistok.losses.adversarial import PatchGan, hinge_discriminator_loss
from vistok.losses.halting import halting_losses
from vistok.losses.perceptual import PerceptualLoss
from vistok.losses.tokenizer import TokenizerLossConfig

_BALANCE_EPS = 1e-4
_LARGEST_BALANCE = 1e4


@dataclass(frozen=True)
class AdaptiveLossConfig(TokenizerLossConfig):
    """Terms and weights; of ``TokenizerLossConfig`` those for alignment, KL and proxies mean nothing here.

    Attributes:
        stage: ``latents`` or ``pixels``, see above.
        base: weights (name, hub id or path) of the grid tokenizer that stage ``latents`` starts with; "" for fresh ones.
        halting_weight: of the halting predictions' cross-entropies.
        run_weights: of the codes' term of each rollout; () for 1.
        adversarial_late_start, adversarial_late_weight: from that step on, the adversary weighs this; 0 for never.
        adversarial_period: with an adversary, the model learns at one step of so many, and the discriminator at the others.
        num_discriminators, tokens_per_discriminator: which discriminator sees an image depends on its number of tokens.
    """

    stage: Literal["latents", "pixels"] = "pixels"
    base: str = ""
    halting_weight: float = 1.0
    run_weights: tuple[float, ...] = ()
    adversarial_late_start: int = 0
    adversarial_late_weight: float = 0.0
    adversarial_period: int = 9
    num_discriminators: int = 8
    tokens_per_discriminator: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("adversarial_period", "num_discriminators", "tokens_per_discriminator"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} is at least 1, got {getattr(self, key)}")
        if self.stage == "latents" and (self.adversarial_weight or self.perceptual):
            raise ConfigError("stage: latents makes no pixels for a perceptual loss or an adversary")
        if self.perceptual not in ("", "lpips"):
            raise ConfigError(f"adaptive tokenizers are trained with perceptual: lpips or none, got {self.perceptual}")
        if (self.kl_weight, self.alignment) != (TokenizerLossConfig.kl_weight, ""):
            raise ConfigError("adaptive tokenizers have neither kl_weight nor alignment")


class DiscriminatorBank(nn.ModuleList):
    """Several discriminators of one kind, of which one is asked at a time.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        super().__init__(PatchGan() for _ in range(count))

    def forward(self, images: Tensor, *, index: int, parts: int = 1) -> Tensor:
        """Images [P * B, 3, H, W] of P ``parts`` that are normalised apart -> logits of one discriminator."""
        # They were trained on [0, 1] itself, which PatchGan would bring to [-1, 1].
        return self[index]((images + 1.0) / 2.0, parts=parts)


class AdaptiveLoss(nn.Module):
    """The losses of a model whose ``forward`` gives ``runs``.

    Args:
        config: terms and weights.
    """

    lecam = None

    def __init__(self, config: AdaptiveLossConfig) -> None:
        super().__init__()
        self.config = config
        uses_perceptual = config.perceptual and config.perceptual_weight
        self.perceptual = PerceptualLoss(config.perceptual, pretrained=config.pretrained) if uses_perceptual else None
        self.discriminator = DiscriminatorBank(config.num_discriminators) if config.adversarial_weight else None

    def adversary_is_on(self, step: int) -> bool:
        """Whether the discriminator takes part at this step."""
        return self.discriminator is not None and step >= self.config.adversarial_start

    def model_learns(self, step: int) -> bool:
        """Whether the model is updated at this step; the discriminator is at the others."""
        period, start = self.config.adversarial_period, self.config.adversarial_start
        return not self.adversary_is_on(step) or (step - start) % period == 0

    def adversarial_weight(self, step: int) -> float:
        """Of the adversary at this step."""
        config = self.config
        late = config.adversarial_late_start and step >= config.adversarial_late_start
        return config.adversarial_late_weight if late else config.adversarial_weight

    def discriminator_index(self, count: int) -> int:
        """Which discriminator sees images of so many tokens."""
        return min(max(count // self.config.tokens_per_discriminator, 1), self.config.num_discriminators) - 1

    def generator(
        self, outputs: dict[str, Any], images: Tensor, step: int, *, last_layer: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The model's loss.

        Args:
            outputs: of the model's ``forward``.
            images: [B, 3, H, W] in [0, 1].
            step: decides about the adversary.
            last_layer: the weight at which the adversary's gradient is balanced with the others'.
        Returns:
            the total, and its terms by name: those of run i end in ``_i``. Each has its weight inside but ``codes``.
        """
        terms: dict[str, Tensor] = {}
        totals = []
        with torch.autocast(images.device.type, enabled=False):
            index = self.discriminator_index(outputs["count"])
            for number, run in enumerate(outputs["runs"]):
                if self.config.stage == "latents":
                    own, loss = self._code_terms(run, outputs, number)
                elif "reconstruction" in run:
                    own, loss = self._pixel_terms(
                        run["reconstruction"].float(), images.float(), step, index, last_layer
                    )
                else:
                    own, loss = {}, images.new_zeros(())
                if "targets" in run:
                    for name, value in halting_losses(run["halting"], run["targets"]).items():
                        own[name] = self.config.halting_weight * value
                        loss = loss + own[name]
                if "loss_commitment" in run:
                    own["quantizer"] = self.config.quantizer_weight * (run["loss_commitment"] + run["loss_codebook"])
                    loss = loss + own["quantizer"]
                terms |= {f"{name}_{number}": value for name, value in own.items()}
                totals.append(loss)
        return torch.stack(totals).sum(), terms

    def _code_terms(
        self, run: dict[str, Any], outputs: dict[str, Any], number: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        """How far a run is from the codes below: squared distance, and cross-entropy where it gives logits."""
        weights = self.config.run_weights
        weight = weights[number] if number < len(weights) else 1.0
        terms = {"code": F.mse_loss(run["features"].float(), outputs["codes"].float())}
        if outputs["base_ids"] is None:
            return terms, weight * terms["code"]
        terms["nll"] = F.cross_entropy(run["out"].float().flatten(0, 1), outputs["base_ids"].flatten())
        return terms, weight * terms["nll"] + terms["code"]

    def _pixel_terms(
        self, reconstruction: Tensor, images: Tensor, step: int, index: int, last_layer: Tensor | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        config = self.config
        l2, l1 = F.mse_loss(reconstruction, images), F.l1_loss(reconstruction, images)
        pixel = {"l1": l1, "l2": l2, "l2+l1": l2 + 0.2 * l1}[config.reconstruction]
        terms = {"reconstruction": config.reconstruction_weight * pixel}
        total = terms["reconstruction"]
        if self.perceptual is not None:
            # Published training shows LPIPS images in [0, 1] where it expects [-1, 1].
            shown = ((images + 1.0) / 2.0, (reconstruction + 1.0) / 2.0)
            terms["perceptual"] = config.perceptual_weight * self.perceptual(*shown)
            total = total + terms["perceptual"]
        if self.adversary_is_on(step):
            self.discriminator.requires_grad_(False)  # the gradient passes through it to the pixels only
            fooled = -self.discriminator(reconstruction, index=index).mean()
            self.discriminator.requires_grad_(True)
            terms["balance"] = self.adversarial_weight(step) * balance(total, fooled, last_layer)
            terms["adversarial"] = terms["balance"] * fooled
            total = total + terms["adversarial"]
        return terms, total

    def discriminate(self, logits: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's loss, for its logits of real images and of each run's (detached) reconstructions."""
        real, *fakes = (part.float() for part in logits)
        with torch.autocast(real.device.type, enabled=False):
            loss = torch.stack([hinge_discriminator_loss(real, fake) for fake in fakes]).sum()
        return loss, {"discriminator": loss, "logits_real": real.mean(), "logits_fake": torch.stack(fakes).mean()}


def balance(loss: Tensor, adversarial: Tensor, last_layer: Tensor | None) -> Tensor:
    """How much larger the first loss's gradient at a weight is than the second's (VQGAN, arXiv:2012.09841), at most 1e4.

    1 where no gradients are recorded.
    """
    if last_layer is None or not (loss.requires_grad and last_layer.requires_grad):
        return loss.new_ones(())
    first, second = (torch.autograd.grad(term, last_layer, retain_graph=True)[0].norm() for term in (loss, adversarial))
    return (first / (second + _BALANCE_EPS)).clamp(0.0, _LARGEST_BALANCE).detach()
