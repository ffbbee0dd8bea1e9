"""What adaptive tokenizers over a grid tokenizer have in common: a wanted error, a base that can be frozen, its noise."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.base import Tokenizer
from vistok.models.grid_base import GridBase
from vistok.quantizers import VectorQuantizer


class AdaptiveTokenizer(Tokenizer):
    """A tokenizer that gives an image as many tokens as a wanted mean absolute error needs.

    A family's configuration has ``base``, ``image_size``, ``patch_size``, ``vqgan``, ``kl``, ``target_error`` and
    ``quantizer``. It sets ``base`` last, so that ``dtype`` is the trained part's.

    Attributes:
        errors: the errors it can be asked for, where it was trained on a table of them.
        num_first_errors: how many of the smallest ones the first run of training asks for.
        may_leave_out: parameters that a training iteration may have no use for.
    """

    adaptive = True
    errors: ClassVar[tuple[float, ...]] = ()
    num_first_errors: ClassVar[int] = 0
    may_leave_out: ClassVar[tuple[str, ...]] = ()
    base: GridBase

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._base_frozen = False

    @property
    def continuous(self) -> bool:
        return self.config.quantizer == "none"

    @abstractmethod
    def head_weight(self) -> Tensor:
        """The last weight of the transformers."""

    def make_base(self) -> GridBase:
        """The base of the configuration, with fresh weights."""
        config = self.config
        return GridBase(
            config.base,
            image_size=config.image_size,
            patch_size=config.patch_size,
            vqgan=config.vqgan,
            kl=config.kl,
        )

    def make_vq(self) -> VectorQuantizer:
        """The configuration's codebook, on the unit sphere."""
        config = self.config
        return VectorQuantizer(
            config.codebook_size, config.code_dim, commitment_cost=config.commitment_cost, l2_norm=True
        )

    def last_layer(self) -> Tensor:
        """The last weight before the pixels, where adversarial and other gradients are balanced."""
        return self.head_weight() if self.base.codec is None else self.base.codec.decoder.conv_out.weight

    def freeze_base(self) -> None:
        """Train on the base's latents, and leave the base as it is (stage 1)."""
        self._base_frozen = True
        self.base.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> AdaptiveTokenizer:
        """Set training mode; a frozen base stays in evaluation mode."""
        super().train(mode)
        if self._base_frozen:
            self.base.eval()
        return self

    def encode_base(self, images: Tensor, noise: Tensor | None) -> Tensor:
        """Images [B, 3, H, W] -> their map [B, h*w, C] in training, without gradients where the base is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._base_frozen):
            return self.base.encode(images, noise=noise)

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """``noise`` of one image, of the ``kl`` base; see ``Tokenizer.draw``."""
        shape = self.base.noise_shape()
        return {} if shape is None else {"noise": torch.randn(shape, generator=generator)}

    def wanted_errors(self, error: float | Sequence[float] | Tensor | None, batch: int) -> Tensor:
        """``target_error`` as a number for each image, float32 [B]; None is the configuration's.

        Raises:
            VistokError: not one number, or one for each of ``batch`` images, of 0 or more.
        """
        error = self.config.target_error if error is None else error
        try:
            wanted = torch.as_tensor(error, dtype=torch.float32, device=self.device).reshape(-1)
        except (TypeError, ValueError, RuntimeError) as problem:
            raise VistokError(f"target_error is a number, or one for each image, got {error!r}") from problem
        if len(wanted) not in (1, batch) or not bool(((wanted >= 0) & (wanted < torch.inf)).all()):
            raise VistokError(
                f"target_error is a mean absolute error, 0 or more, or one for each of {batch} images; got {error!r}"
            )
        return wanted.expand(batch)

    def check_tokens(self, tokens: Any) -> None:
        super().check_tokens(tokens)
        if tokens.is_continuous and tokens.channels != self.token_dim:
            raise VistokError(f"{self._label} decodes latents of {self.token_dim} channels, got {tokens.channels}")

    @property
    def token_dim(self) -> int:
        """Channels of a continuous token."""
        return self.config.code_dim

    def _refuse_search(self, target: Any, decode_options: Any) -> None:
        if target is not None or decode_options is not None:
            example = self.config.target_error
            raise VistokError(
                f"{self._label} finds lengths itself: say target_error={example:g}, a mean absolute error"
            )

    def _refuse_condition(self, condition: Any) -> None:
        if condition is not None:
            raise VistokError(f"{self._label} takes no condition")

    @staticmethod
    @torch.no_grad()
    def _init_normal(parts: Iterable[nn.Module], tokens: Iterable[nn.Module]) -> None:
        """Weights of ``parts`` normal 0.02 (cut at +-2 absolute), biases zero; own parameters of ``tokens`` normal D^-1/2."""
        for part in parts:
            for module in part.modules():
                if isinstance(module, (nn.Linear, nn.Conv2d)):
                    nn.init.trunc_normal_(module.weight, std=0.02)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
        for part in tokens:
            for _, parameter in part.named_parameters(recurse=False):
                nn.init.normal_(parameter, std=part.norm_pre.normalized_shape[0] ** -0.5)
