"""Tiny tokenizers of every kind, and pictures for them, for tests that need a model but not a good one."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vistok.models.base import Tokenizer
from vistok.models.maskgit_vqgan import MaskGitVqgan, MaskGitVqganConfig
from vistok.models.titok import TiTok, TiTokConfig, TransformerSize

SIDE = 32
TINY = TransformerSize(32, 2, 2)
VQGAN = MaskGitVqganConfig(image_size=SIDE, base_channels=32, code_dim=16, codebook_size=64, num_blocks=1)
BASE = TiTokConfig(
    image_size=SIDE,
    patch_size=8,
    decoder_patch_size=16,
    encoder=TINY,
    decoder=TINY,
    num_tokens=6,
    codebook_size=50,
    code_dim=4,
)
KINDS = {
    "vq_pixels": BASE,
    "vq_legacy": replace(BASE, head="vqgan", legacy_layout=True, vqgan=VQGAN),
    "vq_text": replace(BASE, text_length=5, text_dim=7, l2_norm=False, cluster=True),
    "gaussian": replace(BASE, quantizer="gaussian"),
    "gaussian_linear": replace(BASE, quantizer="gaussian", tail_drop="uniform", init="linear"),
    "fsq_ordered": replace(BASE, quantizer="fsq", levels=(4, 3, 5, 2), tail_drop="uniform"),
    "fsq_linear": replace(BASE, quantizer="fsq", levels=(8, 8, 8, 8), tail_drop="log_uniform", init="linear"),
    "fsq_progressive": replace(
        BASE, quantizer="fsq", levels=(8, 8, 8, 8), num_tokens=24, tail_drop="log_uniform", init="progressive"
    ),
    "maskgit_vqgan": VQGAN,
}


def make(kind: str) -> Tokenizer:
    """A model with fresh weights, the same every time, in evaluation mode."""
    torch.manual_seed(0)
    config = KINDS[kind]
    model = MaskGitVqgan(config) if isinstance(config, MaskGitVqganConfig) else TiTok(config)
    if getattr(config, "init", "random") != "random":
        model.fit_linear(pictures(24, seed=5))
    return model.eval()


def pictures(count: int, seed: int = 0) -> Tensor:
    """Smooth random pictures [count, 3, 32, 32] in [0, 1]."""
    small = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(small, size=(SIDE, SIDE), mode="bilinear", align_corners=True)


def condition(model: Tokenizer, count: int) -> Tensor | None:
    """What ``decode`` wants beside tokens, where it wants something."""
    return torch.randn(count, 5, 7, generator=torch.Generator().manual_seed(1)) if model.conditional else None
