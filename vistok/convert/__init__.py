"""Published checkpoints: recognise them, and map their names and configurations to ours and back.

One file a source. Each offers a ``Source``; ``recognise`` finds the one that knows a set of keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vistok.convert.key_map import Source
from vistok.errors import CheckpointError


def sources() -> tuple[Source, ...]:
    """All known sources."""
    from vistok.convert.alit import ALIT
    from vistok.convert.flexar import FLEXAR
    from vistok.convert.flextok import FLEXTOK
    from vistok.convert.gigatok import GIGATOK, GIGATOK_2D
    from vistok.convert.gpt import GPT
    from vistok.convert.karl import KARL
    from vistok.convert.kl_vae import KL_VAE
    from vistok.convert.ldm_kl import LDM_KL, MAGE_VQGAN
    from vistok.convert.maskgen import MASKGEN_KL, MASKGEN_VQ
    from vistok.convert.maskgit import MASKGIT_BERT, MASKGIT_UVIT
    from vistok.convert.maskgit_vqgan import MASKGIT_VQGAN
    from vistok.convert.rar import RAR
    from vistok.convert.titok import TITOK

    # More particular layouts first: MaskGIT-VQGAN's names are part of GigaTok's. A family is written in its first layout.
    return (
        TITOK,
        GIGATOK,
        GIGATOK_2D,
        FLEXTOK,
        KL_VAE,
        KARL,
        ALIT,
        LDM_KL,
        MASKGIT_VQGAN,
        MAGE_VQGAN,
        GPT,
        FLEXAR,
        MASKGEN_VQ,
        MASKGEN_KL,
        RAR,
        MASKGIT_BERT,
        MASKGIT_UVIT,
    )


def recognise(shapes: Mapping[str, tuple[int, ...]], *, where: str = "checkpoint") -> Source:
    """The source whose layout these tensor names are.

    Raises:
        CheckpointError: no known layout; the message shows some of the names.
    """
    for source in sources():
        if source.signature <= shapes.keys():
            return source
    some = ", ".join(sorted(shapes)[:6])
    known = "; ".join(source.title for source in sources())
    raise CheckpointError(
        f"{where}: {len(shapes)} tensors of no layout that vistok knows (they start {some}). Known: vistok's own; {known}"
    )


def find_key(config: Any, key: str) -> Any:
    """The first value under ``key`` anywhere in a nested configuration, or None."""
    if isinstance(config, Mapping):
        if key in config:
            return config[key]
        for value in config.values():
            found = find_key(value, key)
            if found is not None:
                return found
    return None
