"""Whether a generator and a tokenizer belong together."""

from __future__ import annotations

import logging

from vistok.errors import VistokError
from vistok.generate.base import Generator
from vistok.models.base import Tokenizer
from vistok.tokens import Tokens

logger = logging.getLogger(__name__)


def check_pair(generator: Generator, tokenizer: Tokenizer, length: int) -> None:
    """Raise a ``VistokError`` unless ``tokenizer`` decodes what ``generator`` makes, ``length`` tokens of it."""
    name = tokenizer.name or tokenizer.family
    if tokenizer.codebook_size != generator.codebook_size:
        raise VistokError(
            f"the generator makes tokens of the codebook {generator.codebook_size}, "
            f"and {name} decodes {tokenizer.codebook_size}; use the tokenizer it was trained with"
        )
    if not 1 <= length <= tokenizer.num_tokens:
        raise VistokError(f"{name} decodes 1 to {tokenizer.num_tokens} tokens, got length={length}")
    if length < tokenizer.num_tokens and not (tokenizer.ordered or tokenizer.adaptive):
        raise VistokError(f"{name} decodes {tokenizer.num_tokens} tokens and no fewer, got length={length}")


def same_origin(tokens: Tokens, tokenizer: Tokenizer) -> bool:
    """Whether these weights of the tokenizer made such tokens, as far as is known; if not, a warning is logged."""
    if not tokens.weight_hash or tokens.weight_hash == tokenizer.weight_hash():
        return True
    logger.warning(
        "the generator was trained on tokens of %s (weights %s), and %s (weights %s) decodes them: "
        "the images mean nothing unless these are the same model",
        tokens.model or tokens.family,
        tokens.weight_hash,
        tokenizer.name or tokenizer.family,
        tokenizer.weight_hash(),
    )
    return False
