"""Training adaptive tokenizers: the runs or rollouts of every iteration, in stages on latents and on pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vistok.errors import ConfigError
from vistok.hub import from_pretrained
from vistok.losses.adaptive import AdaptiveLoss, AdaptiveLossConfig
from vistok.losses.halting import ErrorSampler
from vistok.models.base import Tokenizer, key_report
from vistok.training.config import TrainConfig
from vistok.training.tokenizer_task import TokenizerTask


class AdaptiveTask(TokenizerTask):
    """A tokenizer whose ``forward`` gives ``runs``, and discriminators where the loss has an adversary.

    Args:
        config: of the run; ``config.loss`` is an ``AdaptiveLossConfig``.
    """

    loss_config_class = AdaptiveLossConfig
    loss_class = AdaptiveLoss

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        # Only one discriminator of several sees a batch, and a rollout's stages may leave out a mask token.
        self.find_unused_parameters = self.losses.discriminator is not None or bool(self.model.may_leave_out)
        errors = self.model.errors
        if errors:
            self.errors = ErrorSampler(errors, start=self.model.num_first_errors)
            self.extra["errors"] = self.errors

    def _make_model(self) -> Tokenizer:
        config, model = self.loss_config, super()._make_model()
        if config.stage == "latents":
            if model.base.codec is None:
                raise ConfigError("loss.stage: latents learns a grid tokenizer's codes, and model.base is pixels")
            if config.base and config.pretrained and not self.config.init_from:
                base = from_pretrained(config.base)
                report = key_report(model.base.codec.state_dict(), base.state_dict())
                if report:
                    raise ConfigError(f"loss.base: {config.base} is not the model's grid tokenizer:\n{report}")
                model.base.codec.load_state_dict(base.state_dict())
            model.freeze_base()
        return model

    def schedule_steps(self, name: str) -> int:
        """Updates of each module: with an adversary, they take turns."""
        start, period = self.loss_config.adversarial_start, self.loss_config.adversarial_period
        if self.losses.discriminator is None or start >= self.config.steps:
            return max(1, self.config.steps)
        turns = self.config.steps - start
        shared = -(-turns // period)
        if name == "discriminator":
            return max(1, turns if period == 1 else turns - shared)
        return start + shared

    def phases(self, step: int) -> tuple[str, ...]:
        """The model, or the discriminator; both where they take no turns (a period of 1)."""
        if not self.losses.adversary_is_on(step):
            return ("model",)
        if self.loss_config.adversarial_period == 1:
            return ("model", "discriminator")
        return ("model",) if self.losses.model_learns(step) else ("discriminator",)

    def loss(
        self, phase: str, batch: dict[str, Any], step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The model's loss, or the discriminator's on detached reconstructions."""
        images = batch["image"]
        kwargs = self._draws(batch, step)
        if "errors" in self.extra and "uniform" in kwargs:
            kwargs["conditions"] = self.errors(kwargs.pop("uniform"))
        options = self.model.forward_options(step, pixels=self.loss_config.stage == "pixels")
        with torch.set_grad_enabled(phase == "model"):
            outputs = self.wrapped["model"](images, generator=generator, **kwargs, **options)
        runs = outputs["runs"]
        self._ids = runs[-1].get("ids")
        if "errors" in self.extra:
            self.errors.update(outputs["error"])
        if phase == "model":
            return self.losses.generator(outputs, images, step, last_layer=self.model.last_layer())
        shown = [run["reconstruction"].detach().float() for run in runs if "reconstruction" in run]
        index = self.losses.discriminator_index(outputs["count"])
        logits = self.wrapped["discriminator"](torch.cat([images, *shown]), index=index, parts=1 + len(shown))
        return self.losses.discriminate(logits.chunk(1 + len(shown)))

    def preview(self, batch: dict[str, Any], modules: dict[str, torch.nn.Module]) -> Tensor | None:
        """Originals above reconstructions for a strict and a lax target error."""
        model = modules["model"]
        images = batch["image"][:8]
        rows = [images.float().cpu()]
        for error in (model.config.target_error, 3.0 * model.config.target_error):
            rows.append(model.decode(model.encode(images, target_error=error)).cpu())
        return torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)

    def evaluate(self, modules: dict[str, torch.nn.Module]) -> dict[str, float]:
        """PSNR and the mean number of tokens on up to 256 held-out pictures, at the default target error."""
        from vistok.data import collate
        from vistok.metrics.pixel import psnr

        model, data = modules["model"], self.dataset(train=False)
        values, lengths = [], []
        for start in range(0, min(len(data), 256), 32):
            batch = collate([data[index] for index in range(start, min(start + 32, len(data), 256))])
            images = batch["image"].to(model.device)
            tokens = model.encode(images)
            values.append(psnr(model.decode(tokens), images))
            lengths.append(tokens.lengths.double())
        return {"psnr": float(torch.cat(values).mean()), "tokens": float(torch.cat(lengths).mean())}
