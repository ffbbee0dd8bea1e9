"""Text features for models that are guided by captions, from CLIP's text towers (open_clip)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from vistok.errors import CheckpointError, VistokError, nearest

_ARCHITECTURE, _WEIGHTS = "ViT-L-14-336", "openai"
_RANDOM_SEED = 0


# The house's own: for recipes and tests that have no weights, and no time for large ones.
_TINY, _TINY_WIDTH, _TINY_LENGTH = "tiny", 64, 16


class ClipTextTower(nn.Module):
    """The text half of a CLIP model, frozen.

    Args:
        architecture: open_clip's name of the model; or ``tiny``, 64 channels wide and with random weights.
        weights: open_clip's name of its weights, from its cache or the network; "" for random ones, the
            same every time (tests, dry runs).
    Raises:
        VistokError: no such architecture.
        CheckpointError: the weights are not to be had.
    """

    def __init__(self, architecture: str, weights: str = "") -> None:
        super().__init__()
        clip, self.tokenize = make_clip(architecture, weights)
        self.token_embedding, self.transformer, self.ln_final = clip.token_embedding, clip.transformer, clip.ln_final
        self.positional_embedding, self.text_projection = clip.positional_embedding, clip.text_projection
        self.register_buffer("mask", clip.attn_mask, persistent=False)
        self.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.positional_embedding.device

    def _embed(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Captions -> ids [B, T], and what the first block reads [B, T, D]; longer captions are cut."""
        ids = self.tokenize(list(captions)).to(self.device)
        return ids, self.token_embedding(ids) + self.positional_embedding


def make_clip(architecture: str, weights: str) -> tuple[nn.Module, Callable[[list[str]], Tensor]]:
    """A whole CLIP model, and what turns captions into its ids."""
    import open_clip

    names = [_TINY, *open_clip.list_models()]
    if architecture not in names or (architecture == _TINY and weights):
        raise VistokError(
            f"open_clip has no model {architecture!r} with weights {weights!r}; {nearest(architecture, names)}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_RANDOM_SEED)
        if architecture == _TINY:
            from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

            sizes = {"width": _TINY_WIDTH, "layers": 2}
            vision = CLIPVisionCfg(**sizes, head_width=32, patch_size=32, image_size=32)
            text = CLIPTextCfg(**sizes, heads=2, context_length=_TINY_LENGTH)
            return CLIP(_TINY_WIDTH, vision, text), open_clip.tokenizer.SimpleTokenizer(context_length=_TINY_LENGTH)
        try:
            # OpenAI's weights were trained with the quick GELU, which the architecture's name does not tell.
            clip = open_clip.create_model(
                architecture, pretrained=weights or None, force_quick_gelu=weights in ("", _WEIGHTS)
            )
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"CLIP {architecture} ({weights}) cannot be loaded ({error}); fetch it once where there is a network: "
                f"python -c \"import open_clip; open_clip.create_model('{architecture}', '{weights}')\""
            ) from error
    if not isinstance(clip, open_clip.CLIP):
        raise VistokError(
            f"{architecture} keeps its text tower in another form than CLIP's; take one as {_ARCHITECTURE}"
        )
    return clip, open_clip.get_tokenizer(architecture)


class ClipTextFeatures(ClipTextTower):
    """Captions to the features that TA-TiTok's decoder sees (arXiv:2501.07730).

    All 77 positions after all blocks and the final norm, without pooling or projection.

    Args:
        pretrained: OpenAI's weights from open_clip's cache or the network; False for random ones
            (tests, dry runs).
    Raises:
        CheckpointError: the weights are not to be had.
    """

    length, width = 77, 768

    def __init__(self, *, pretrained: bool = True) -> None:
        super().__init__(_ARCHITECTURE, _WEIGHTS if pretrained else "")

    @torch.no_grad()
    def forward(self, captions: Sequence[str]) -> Tensor:
        """Captions (longer ones are cut at 77 tokens; "" is fine) -> [B, 77, 768] fp32."""
        _, x = self._embed(captions)
        return self.ln_final(self.transformer(x, attn_mask=self.mask)).float()


class ClipCaptionStates(ClipTextTower):
    """Captions to what text-to-image generators read: the states before the last block, and the caption's embedding."""

    @torch.no_grad()
    def forward(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Captions -> states [B, T, D] without the final norm, and projected embeddings [B, E]; both fp32."""
        ids, x = self._embed(captions)
        *blocks, last = self.transformer.resblocks
        for block in blocks:
            x = block(x, attn_mask=self.mask)
        states = x
        x = self.ln_final(last(x, attn_mask=self.mask))
        pooled = x[torch.arange(len(x), device=x.device), ids.argmax(dim=-1)]  # the end of a text has the largest id
        return states.float(), (pooled @ self.text_projection).float()


@lru_cache(maxsize=2)
def caption_tower(name: str, device: torch.device) -> ClipCaptionStates:
    """The tower of a name ``ARCHITECTURE:WEIGHTS`` or, for random weights, ``ARCHITECTURE`` (as ``tiny``); kept for the next call."""
    architecture, _, weights = name.partition(":")
    return ClipCaptionStates(architecture, weights).to(device)
