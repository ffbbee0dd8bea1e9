"""Text features for models that are guided by captions, from CLIP's text tower (open_clip)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vistok.errors import CheckpointError

_ARCHITECTURE, _WEIGHTS = "ViT-L-14-336", "openai"


class ClipTextFeatures(nn.Module):
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
        super().__init__()
        import open_clip

        weights = _WEIGHTS if pretrained else None
        try:
            # OpenAI's weights were trained with the quick GELU, which the architecture's name does not tell.
            clip = open_clip.create_model(_ARCHITECTURE, pretrained=weights, force_quick_gelu=True)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"CLIP {_ARCHITECTURE} ({_WEIGHTS}) cannot be loaded ({error}); fetch it once where there is a network: "
                f"python -c \"import open_clip; open_clip.create_model('{_ARCHITECTURE}', '{_WEIGHTS}')\""
            ) from error
        self.tokenize = open_clip.get_tokenizer(_ARCHITECTURE)
        self.token_embedding, self.transformer, self.ln_final = clip.token_embedding, clip.transformer, clip.ln_final
        self.positional_embedding = clip.positional_embedding
        self.register_buffer("mask", clip.attn_mask, persistent=False)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, captions: Sequence[str]) -> Tensor:
        """Captions (longer ones are cut at 77 tokens; "" is fine) -> [B, 77, 768] fp32."""
        ids = self.tokenize(list(captions)).to(self.positional_embedding.device)  # [B, 77]
        x = self.token_embedding(ids) + self.positional_embedding
        return self.ln_final(self.transformer(x, attn_mask=self.mask)).float()
