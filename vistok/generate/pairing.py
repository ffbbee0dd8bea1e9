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
    check_codebooks(generator.codebook_size, tokenizer)
    check_length(tokenizer, length)


def check_codebooks(codebook_size: int | tuple[int, ...] | None, tokenizer: Tokenizer) -> None:
    """Raise a ``VistokError`` unless ``tokenizer`` decodes tokens of this codebook."""
    if tokenizer.codebook_size != codebook_size:
        raise VistokError(
            f"the generator makes tokens of the codebook {codebook_size}, and {tokenizer.name or tokenizer.family} "
            f"decodes {tokenizer.codebook_size}; use the tokenizer it was trained with"
        )


def check_length(tokenizer: Tokenizer, length: int) -> None:
    """Raise a ``VistokError`` unless ``tokenizer`` decodes rows of ``length`` tokens."""
    name = tokenizer.name or tokenizer.family
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
