"""Cards of ALIT. The weights are single files on Dropbox; the authors' repository links to them."""

from __future__ import annotations

from vistok.cards.preprocessing import CENTER_256_BICUBIC
from vistok.registry import ModelCard

_BASES = {"vqgan": "VQGAN", "kl": "VAE"}
_SIZES = {
    "small": {"width": 1024, "depth": 8, "num_heads": 8},
    "base": {"width": 768, "depth": 12, "num_heads": 12},
    "semilarge": {"width": 1024, "depth": 16, "num_heads": 16},
}


def _alit(size: str, base: str, quantizer: str, data: str) -> ModelCard:
    kind = {"vq": "quantized", "none": "continuous"}[quantizer]
    file = f"{data}/alit_{size}_{'vae' if base == 'kl' else base}_{kind}_latents.pth"
    return ModelCard(
        name=f"alit_{size}_{base}_{'vq' if quantizer == 'vq' else 'continuous'}.{data}",
        family="alit",
        config={"base": base, "quantizer": quantizer, "encoder": _SIZES[size], "decoder": _SIZES[size]},
        licence="not stated (the repository has no licence file)",
        preprocessing=CENTER_256_BICUBIC,
        paper="ALIT, arXiv:2411.02393",
        notes=f"32 to 256 tokens, in rounds; on the {_BASES[base]}; published on Dropbox as {file}: from_pretrained(path) reads it",
    )


CARDS = (
    _alit("small", "vqgan", "vq", "imagenet"),
    _alit("small", "vqgan", "vq", "imagenet100"),
    _alit("base", "vqgan", "vq", "imagenet100"),
    _alit("semilarge", "vqgan", "vq", "imagenet100"),
    _alit("small", "vqgan", "none", "imagenet100"),
    _alit("small", "kl", "vq", "imagenet100"),
    _alit("small", "kl", "none", "imagenet100"),
)
