"""Training tokenizers: stage 1 (proxy codes), stage 2 (pixels and an adversary), single stage, KL, and by flow."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from vistok.config import from_dict, to_dict
from vistok.data import ImageDataset, collate, open_dataset, open_source
from vistok.data.transforms import WITHOUT_DRAWS
from vistok.errors import ConfigError
from vistok.hub import from_pretrained
from vistok.losses.teacher import Teacher, create_teacher
from vistok.losses.tokenizer import TokenizerLoss, TokenizerLossConfig
from vistok.models.base import Tokenizer, key_report
from vistok.models.kl_vae import KlVae
from vistok.seeds import stable_seed
from vistok.training.config import OptimizerConfig, TrainConfig
from vistok.training.task import Task, make_model

logger = logging.getLogger(__name__)

_LINEAR_FIT_IMAGES = 4096
_LINEAR_FIT_VIEWS = 8
_PREVIEW_IMAGES = 8


class TokenizerTask(Task):
    """A tokenizer, and a discriminator where the loss has an adversary.

    Args:
        config: of the run; ``config.loss`` is a ``TokenizerLossConfig``.
    """

    loss_config_class: type = TokenizerLossConfig
    loss_class: type = TokenizerLoss

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.loss_config = from_dict(self.loss_config_class, config.loss, where="loss")
        torch.manual_seed(config.seed)
        self.model = self._make_model()
        if config.freeze_encoder:
            self.model.freeze_encoder()
        self.losses = self.loss_class(self.loss_config)
        self.modules["model"] = self.model
        if self.losses.discriminator is not None:
            self.modules["discriminator"] = self.losses.discriminator
            if self.losses.lecam is not None:
                self.extra["lecam"] = self.losses.lecam
        if self.losses.perceptual is not None:
            self.frozen["perceptual"] = self.losses.perceptual
        if self._gives_logits:
            self.frozen["proxy"] = self._load_proxy(self.model)
        if self.loss_config.alignment:
            self.frozen["teacher"] = self._make_teacher()
        if self.model.conditional:
            from vistok.models.text import ClipTextFeatures

            wanted, made = (self.model.config.text_length, self.model.config.text_dim), ClipTextFeatures
            if wanted != (made.length, made.width):
                raise ConfigError(
                    f"model.text_length and text_dim are {made.length} and {made.width} where CLIP's text features "
                    f"are made from captions, got {wanted[0]} and {wanted[1]}"
                )
            self.frozen["text"] = ClipTextFeatures(pretrained=self.loss_config.pretrained)
        if self.loss_config.auxiliary_end and not getattr(self.model, "trains_past_tokens", False):
            raise ConfigError(f"loss.auxiliary_end: a {type(self.model).__name__} has no way past its tokens")
        self.find_unused_parameters = bool(getattr(self.model.config, "repa_dim", 0)) and not self.loss_config.alignment
        self._ids: Tensor | None = None
        size = self.model.codebook_size
        self.codebook_size = math.prod(size) if isinstance(size, tuple) else size or 0

    def _make_teacher(self) -> Teacher:
        loss = self.loss_config
        teacher = create_teacher(loss.alignment, pretrained=loss.pretrained, image_size=loss.alignment_size)
        wanted = getattr(self.model.config, "repa_dim", 0)
        if wanted != teacher.dim:
            raise ConfigError(
                f"loss.alignment: {teacher.name} has features of {teacher.dim} channels, and the model projects to "
                f"{wanted}: set model.repa_dim={teacher.dim}"
            )
        return teacher

    @property
    def _gives_logits(self) -> bool:
        return getattr(self.model.config, "head", "") == "proxy"

    def _make_model(self) -> Tokenizer:
        config = self.config
        model = make_model(config.model)
        if not isinstance(model, Tokenizer):
            raise ConfigError(f"task: tokenizer trains a tokenizer, and {config.model} is a {type(model).__name__}")
        if config.init_from:
            start = from_pretrained(config.init_from)
            if getattr(model.config, "head", "") == "vqgan" and getattr(start.config, "head", "") == "proxy":
                start = start.with_pixel_decoder(self._load_proxy(model))
            model.load_weights(start.state_dict(), where=config.init_from)
            return model
        if getattr(model, "vae", None) is not None and self.loss_config.pretrained:
            vae = from_pretrained(self.loss_config.autoencoder)
            report = key_report(model.vae.state_dict(), vae.vae.state_dict()) if isinstance(vae, KlVae) else "no VAE"
            if report:
                raise ConfigError(f"loss.autoencoder: {self.loss_config.autoencoder} is not the model's:\n{report}")
            model.vae.load_state_dict(vae.vae.state_dict())
        if getattr(model.config, "init", "random") in ("linear", "linear_mixed", "progressive"):
            model.fit_linear(self._fitting_images(model.image_size))
        return model

    def _load_proxy(self, model: Tokenizer) -> Tokenizer:
        if self.loss_config.pretrained:
            return from_pretrained(self.loss_config.proxy)
        return make_model({"family": "maskgit_vqgan", **to_dict(model.config.vqgan)})

    def _fitting_images(self, size: int) -> Tensor:
        """Training pictures, evenly chosen and mirrored, and where crops are random, several crops of each."""
        source = open_source(self.config.data.train, split="train")
        data = ImageDataset(source, image_size=size, interpolation=self.config.data.interpolation)
        indices = range(0, len(data), max(1, len(data) // _LINEAR_FIT_IMAGES))
        images = torch.stack([data[index]["image"] for index in indices])
        images = torch.cat([images, images.flip(-1)]) if self.config.data.flip else images
        if self.config.data.crop not in WITHOUT_DRAWS:
            return images
        crops = open_dataset(self.config.data, train=True, image_size=size)
        views = range(min(_LINEAR_FIT_VIEWS, _LINEAR_FIT_IMAGES // len(indices)))
        more = [crops[index, stable_seed(self.config.seed, "fit", view, index)] for view in views for index in indices]
        return torch.cat([images, *(item["image"][None] for item in more)])

    def optimizer_config(self, name: str) -> OptimizerConfig:
        """The discriminator may have settings of its own."""
        return (
            (self.config.discriminator or self.config.optimizer) if name == "discriminator" else self.config.optimizer
        )

    def schedule_steps(self, name: str) -> int:
        """The discriminator's learning rate runs from its start to the end."""
        late = self.loss_config.adversarial_start if name == "discriminator" else 0
        return max(1, self.config.steps - late)

    def dataset(self, *, train: bool) -> Dataset:
        """The configuration's pictures at the model's size; see ``vistok.data.open_dataset``."""
        size = self.model.image_size
        if self.config.data.image_size not in (None, size):
            raise ConfigError(f"data.image_size is {self.config.data.image_size}, and the model takes {size} pixels")
        return open_dataset(self.config.data, train=train, image_size=size)

    def collate(self, items: list[Any]) -> dict[str, Any]:
        """See ``vistok.data.collate``."""
        return collate(items)

    def phases(self, step: int) -> tuple[str, ...]:
        """The model always; the discriminator once the adversary is on."""
        return ("model", "discriminator") if self.losses.adversary_is_on(step) else ("model",)

    def loss(
        self, phase: str, batch: dict[str, Any], step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's loss, or the discriminator's on the same, detached reconstruction."""
        images = batch["image"]
        if phase == "discriminator":
            both = self.losses.augment(torch.cat([images, batch["reconstruction"]]), generator)
            logits = self.wrapped["discriminator"](both, parts=2)
            return self.losses.discriminate(*logits.chunk(2))
        text = self.frozen["text"](batch["caption"]) if "text" in self.frozen else None
        kwargs = self._draws(batch, step) | ({} if text is None else {"text": text}) | self.losses.forward_options(step)
        outputs = self.wrapped["model"](images, generator=generator, **kwargs)
        self._ids = outputs.get("ids")
        codes = features = None
        if self._gives_logits:
            with torch.no_grad():
                codes = self.frozen["proxy"].encode(images).ids
        if "teacher" in self.frozen:
            features = self.frozen["teacher"](images)
        if "reconstruction" in outputs:
            batch["reconstruction"] = outputs["reconstruction"].detach().float()  # for the discriminator
        return self.losses.generator(outputs, images, step, codes=codes, features=features, generator=generator)

    def _draws(self, batch: dict[str, Any], step: int) -> dict[str, Tensor]:
        """What the model draws for each picture, each picture's its own, however the batch is cut or shared out."""
        rows = []
        for index in batch["index"].tolist():
            generator = torch.Generator().manual_seed(stable_seed(self.config.seed, "noise", step, index))
            rows.append(self.model.draw(generator))
        return {name: torch.stack([row[name] for row in rows]).to(batch["image"].device) for name in rows[0]}

    def codebook_ids(self) -> Tensor | None:
        """Ids [B, N] of the last micro batch."""
        return self._ids

    @torch.no_grad()
    def preview(self, batch: dict[str, Any], modules: dict[str, nn.Module]) -> Tensor | None:
        """Originals above reconstructions (of all tokens, and of a quarter and a few where ordered)."""
        if self._gives_logits:
            return self._preview_logits(batch, modules)
        model = modules["model"]
        images = batch["image"][:_PREVIEW_IMAGES]
        text = self.frozen["text"](batch["caption"][:_PREVIEW_IMAGES]) if "text" in self.frozen else None
        tokens = model.encode(images)
        lengths = [model.num_tokens]
        if model.ordered:
            lengths = sorted({max(1, model.num_tokens // part) for part in (16, 4, 1)})
        rows = [images.float().cpu()]
        for length in lengths:
            part = tokens.truncate(length) if length < model.num_tokens else tokens
            rows.append(model.decode(part, condition=text).cpu())
        return torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)

    def _preview_logits(self, batch: dict[str, Any], modules: dict[str, nn.Module]) -> Tensor:
        """A stage-1 model's likeliest proxy codes, decoded by the proxy, below the originals."""
        model, proxy = modules["model"], self.frozen["proxy"]
        images = batch["image"][:_PREVIEW_IMAGES]
        tokens = model.encode(images)
        logits = model.decode_features(model.quantizer.lookup(tokens.ids.to(images.device)))
        decoded = proxy.decode_latents(proxy.quantizer.lookup(logits.argmax(dim=-1))).clamp(0.0, 1.0)
        return torch.cat([torch.cat(list(row.float().cpu()), dim=2) for row in (images, decoded)], dim=1)

    def evaluate(self, modules: dict[str, nn.Module]) -> dict[str, float]:
        """PSNR on up to 256 held-out pictures, at full length."""
        from vistok.metrics.pixel import psnr

        if self._gives_logits:
            return {}
        model, data = modules["model"], self.dataset(train=False)
        values = []
        for start in range(0, min(len(data), 256), 32):
            batch = collate([data[index] for index in range(start, min(start + 32, len(data), 256))])
            images = batch["image"].to(model.device)
            text = self.frozen["text"](batch["caption"]) if "text" in self.frozen else None
            values.append(psnr(model.decode(model.encode(images), condition=text), images))
        return {"psnr": float(torch.cat(values).mean())}

    def export(self, folder: Path, modules: dict[str, nn.Module]) -> None:
        """``save_pretrained`` of the averaged model."""
        modules["model"].save_pretrained(folder)
