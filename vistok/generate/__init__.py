"""Generators: tokens out of a condition, which a tokenizer decodes to images."""

from vistok.generate.ar import DigitAR, DigitARConfig
from vistok.generate.autoregressive import AutoregressiveGenerator, Rollout
from vistok.generate.bank import TokenDataset, tokenize_images
from vistok.generate.base import GenerationResult, Generator
from vistok.generate.captions import CaptionCondition
from vistok.generate.flexar import FlexAR, FlexARConfig
from vistok.generate.gpt import Gpt, GptConfig
from vistok.generate.kv_cache import KVCache
from vistok.generate.maskgen import MaskGen, MaskGenConfig
from vistok.generate.maskgit import MaskGit, MaskGitConfig
from vistok.generate.prior import LearnedPrior
from vistok.generate.rar import Rar, RarConfig
from vistok.generate.sampling import SamplingConfig
from vistok.generate.text import TextCondition

__all__ = [
    "AutoregressiveGenerator",
    "CaptionCondition",
    "DigitAR",
    "DigitARConfig",
    "FlexAR",
    "FlexARConfig",
    "GenerationResult",
    "Generator",
    "Gpt",
    "GptConfig",
    "KVCache",
    "LearnedPrior",
    "MaskGen",
    "MaskGenConfig",
    "MaskGit",
    "MaskGitConfig",
    "Rar",
    "RarConfig",
    "Rollout",
    "SamplingConfig",
    "TextCondition",
    "TokenDataset",
    "tokenize_images",
]
