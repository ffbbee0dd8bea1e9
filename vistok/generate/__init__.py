"""Generators: tokens out of a condition, which a tokenizer decodes to images."""

from vistok.generate.ar import DigitAR, DigitARConfig
from vistok.generate.autoregressive import AutoregressiveGenerator, Rollout
from vistok.generate.bank import TokenDataset, tokenize_images
from vistok.generate.base import GenerationResult, Generator
from vistok.generate.kv_cache import KVCache
from vistok.generate.sampling import SamplingConfig

__all__ = [
    "AutoregressiveGenerator",
    "DigitAR",
    "DigitARConfig",
    "GenerationResult",
    "Generator",
    "KVCache",
    "Rollout",
    "SamplingConfig",
    "TokenDataset",
    "tokenize_images",
]
