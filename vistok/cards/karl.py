"""Cards of KARL, and of the grid tokenizers that it and ALIT are built on.

The weights are single files on Dropbox; the authors' repositories link to them.
"""

from __future__ import annotations

from vistok.cards.preprocessing import CENTER_256_BICUBIC
from vistok.registry import ModelCard

_PAPER = "KARL, arXiv:2507.07995"
_BASES = {"vqgan": "VQGAN", "kl": "VAE"}


def _karl(base: str, quantizer: str, data: str) -> ModelCard:
    kind = {"vq": "quantized", "none": "continuous"}[quantizer]
    file = f"{data}/karl_small_{'vae' if base == 'kl' else base}_{kind}_latents.pth"
    return ModelCard(
        name=f"karl_small_{base}_{'vq' if quantizer == 'vq' else 'continuous'}.{data}",
        family="karl",
        config={"base": base, "quantizer": quantizer},
        licence="not stated (the repository has no licence file)",
        preprocessing=CENTER_256_BICUBIC,
        paper=_PAPER,
        notes=f"as many tokens as a wanted error needs, up to 256 by default; on the {_BASES[base]}; published on Dropbox as {file}: "
        "from_pretrained(path) reads it",
    )


CARDS = (
    _karl("vqgan", "vq", "imagenet"),
    _karl("vqgan", "vq", "imagenet100"),
    _karl("vqgan", "none", "imagenet100"),
    _karl("kl", "vq", "imagenet100"),
    _karl("kl", "none", "imagenet100"),
    ModelCard(
        name="mage_vqgan.imagenet",
        family="maskgit_vqgan",
        licence="MIT (the repository)",
        preprocessing=CENTER_256_BICUBIC,
        paper="MAGE, arXiv:2211.09117",
        notes="the grid tokenizer below KARL and ALIT; published as vqgan_jax_strongaug.ckpt",
    ),
    ModelCard(
        name="mar_kl16.imagenet",
        family="ldm_kl",
        licence="MIT (the repository)",
        preprocessing=CENTER_256_BICUBIC,
        metrics={"rfid": 0.53},
        paper="MAR, arXiv:2406.11838",
        notes="a KL autoencoder with a 16x16 map, below KARL and ALIT; published as kl16.ckpt; its rFID was measured by a user",
    ),
)
