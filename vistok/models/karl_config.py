"""The configuration of KARL (arXiv:2507.07995): ``vistok.models.karl``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vistok.errors import ConfigError
from vistok.models.grid_base import BaseKind, check_base
from vistok.models.karl_networks import TABLE_SIDE
from vistok.models.ldm_kl import LdmKlConfig
from vistok.models.maskgit_vqgan import MaskGitVqganConfig
from vistok.models.titok import TransformerSize


@dataclass(frozen=True)
class KarlConfig:
    """Everything that shapes a KARL; the defaults are those of ``karl_small`` on the VQGAN.

    Attributes:
        image_size, patch_size: pixels a side, of an image and of a position of the base's map.
        base: the grid tokenizer below: ``vqgan``, ``kl``, or ``pixels`` for none (house).
        vqgan, kl: its sizes.
        encoder, decoder: width, depth and heads of the two transformers.
        num_tokens: N, the number of positions of latent tokens.
        budget: T where ``encode`` is not told; what the second run of training uses.
        train_counts: smallest and largest T of the first run, and the step between them.
        target_error: the mean absolute error that ``encode`` asks for when it is not told.
        quantizer: ``vq``, ``none`` for continuous tokens, or ``fsq`` (house).
        codebook_size, commitment_cost: of ``vq``, whose codes lie on the unit sphere.
        levels: of ``fsq``, one a channel.
        code_dim: C, channels of a token.
        kept: ``any`` tokens may be deleted, or those of a tail only: ``prefix`` (house).
        mixed_masks: in training, masks mixed among the images of a batch as in the published code.
        init: ``random``, or ``linear`` (house): a frozen linear codec lies under the transformers, which learn what it
            misses, and its errors with ever more tokens lie under the halting predictions; ``progressive`` (house): the same
            with a better codec, which makes the tokens alone. Call ``fit_linear`` with training images before training.
    """

    image_size: int = 256
    patch_size: int = 16
    base: BaseKind = "vqgan"
    vqgan: MaskGitVqganConfig = MaskGitVqganConfig()
    kl: LdmKlConfig = LdmKlConfig(pixels="unit")
    encoder: TransformerSize = TransformerSize(1024, 8, 8)
    decoder: TransformerSize = TransformerSize(1024, 8, 8)
    num_tokens: int = 512
    budget: int = 256
    train_counts: tuple[int, int, int] = (16, 368, 16)
    target_error: float = 0.05
    quantizer: Literal["vq", "none", "fsq"] = "vq"
    codebook_size: int = 4096
    commitment_cost: float = 0.25
    levels: tuple[int, ...] = ()
    code_dim: int = 12
    kept: Literal["any", "prefix"] = "any"
    mixed_masks: bool = False
    init: Literal["random", "linear", "progressive"] = "random"

    def __post_init__(self) -> None:
        check_base(self.base, self.image_size, self.patch_size, self.vqgan, self.kl, self.encoder.width)
        if min(self.codebook_size, self.code_dim) < 1:
            raise ConfigError("codebook_size and code_dim are at least 1")
        if self.quantizer == "fsq" and len(self.levels) != self.code_dim:
            raise ConfigError(f"fsq takes one level count a channel: code_dim is {self.code_dim}, levels {self.levels}")
        if self.init != "random" and (self.base, self.quantizer, self.kept) != ("pixels", "fsq", "prefix"):
            raise ConfigError(f"init: {self.init} goes with base: pixels, quantizer: fsq and kept: prefix")
        if self.init == "progressive" and len(set(self.levels)) != 1:
            raise ConfigError(f"init: progressive goes with one number of levels, got {self.levels}")
        if not 1 <= self.budget <= self.num_tokens:
            raise ConfigError(f"budget lies in 1..num_tokens ({self.num_tokens}), got {self.budget}")
        low, high, step = self.train_counts
        if not 1 <= low <= high <= self.num_tokens or step < 1:
            raise ConfigError(
                f"train_counts are 1 <= smallest <= largest <= num_tokens ({self.num_tokens}), and a step; "
                f"got {self.train_counts}"
            )
        if not 0.0 <= self.target_error <= 1.0:
            raise ConfigError(f"target_error lies in [0, 1], got {self.target_error}")
        if self.image_size // self.patch_size > TABLE_SIDE:
            raise ConfigError(f"the map has at most {TABLE_SIDE} positions a side")
