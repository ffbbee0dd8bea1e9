"""A bank of tokens as a training set: images are tokenized once, in several augmented views."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vistok.data.token_shards import pick_view, token_item
from vistok.errors import DataError
from vistok.models.base import Tokenizer
from vistok.seeds import stable_seed
from vistok.tokens import Tokens


class KeyedImages(Protocol):
    """A data set whose items are a function of (index, sample seed), as ``vistok.data.ImageDataset``."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]: ...


class TokenDataset(Dataset[dict[str, Any]]):
    """Tokens, labels and captions of images, keyed by (index, sample seed).

    An image has ``views`` rows side by side; the sample seed picks one, so that an epoch shows every
    image once and its augmentations by and by.

    Args:
        tokens: N * views rows of ids or latents.
        labels: N class numbers, -1 for none; None for no labels at all.
        views: rows an image.
        captions: N texts; None for none.
    """

    def __init__(
        self,
        tokens: Tokens,
        labels: Sequence[int] | Tensor | None = None,
        *,
        views: int = 1,
        captions: Sequence[str] | None = None,
    ) -> None:
        if views < 1 or not len(tokens) or len(tokens) % views:
            raise DataError(f"{len(tokens)} rows of tokens are not a whole number of images with {views} views each")
        count = len(tokens) // views
        labels = torch.full((count,), -1) if labels is None else torch.as_tensor(labels, dtype=torch.int64).cpu()
        if labels.shape != (count,):
            raise DataError(f"{count} images want {count} labels, got {list(labels.shape)}")
        captions = [""] * count if captions is None else list(captions)
        if len(captions) != count:
            raise DataError(f"{count} images want {count} captions, got {len(captions)}")
        self.tokens, self.labels, self.views, self.captions = tokens.to("cpu"), labels, views, captions

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: tuple[int, int] | int) -> dict[str, Any]:
        """One image's tokens.

        Args:
            key: (index, sample seed), or an index alone for the first view.
        Returns:
            ``ids`` int64 [L] or ``latents`` [L, C] (0 past its length), ``length``, ``label``, ``caption``, ``index``, ``sample_seed``.
        """
        index, seed = key if isinstance(key, tuple) else (key, None)
        if not 0 <= index < len(self):
            raise IndexError(f"the data set has {len(self)} images, got index {index}")
        row = index * self.views + pick_view(seed, self.views)
        label, caption = self.labels[index], self.captions[index]
        return token_item(self.tokens, row, label=label, caption=caption, index=index, seed=seed)

    @property
    def channels(self) -> int:
        """Of latents, 0 for ids."""
        return self.tokens.channels

    def keep(self, num_tokens: int) -> None:
        """Keep the first ``num_tokens`` tokens of every image only."""
        self.tokens = self.tokens.truncate(num_tokens)

    def save(self, path: str | Path) -> None:
        """Write the tokens as a ``.vtk`` file; labels are the data source's, and are not in it."""
        self.tokens.save(path)


@torch.no_grad()
def tokenize_images(
    tokenizer: Tokenizer, images: KeyedImages, *, views: int = 1, seed: int = 0, batch_size: int = 64
) -> TokenDataset:
    """Tokenize every image of a data set, in several augmented views.

    A continuous tokenizer's latents are samples, not means: what its decoder was trained on.

    Args:
        tokenizer: makes ids or latents.
        images: gives ``image`` [3, S, S] and ``label`` for (index, sample seed).
        views: how many times each image is read, under sample seeds of its own.
        seed: the views are a function of it.
        batch_size: images at a time.
    """
    keys = [(index, stable_seed(seed, index, view)) for index in range(len(images)) for view in range(views)]
    parts, labels, captions = [], [], []
    for start in range(0, len(keys), batch_size):
        items = [images[key] for key in keys[start : start + batch_size]]
        batch = torch.stack([item["image"] for item in items]).to(tokenizer.device)
        sampler = torch.Generator().manual_seed(stable_seed(seed, "latents", start)) if tokenizer.continuous else None
        parts.append(tokenizer.encode(batch, generator=sampler).to("cpu"))
        labels += [int(item["label"]) for item in items]
        captions += [str(item.get("caption", "")) for item in items]
    return TokenDataset(Tokens.cat(parts), labels[::views], views=views, captions=captions[::views])
