"""Token shards as a training set: what ``vistok tokenize`` writes, image by image (see ``vistok.data.shard_files``)."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vistok.data.shard_files import Manifest, ShardFacts, ShardRecord, facts_path, tokens_path
from vistok.errors import DataError
from vistok.seeds import stable_seed
from vistok.token_file import TokenFile
from vistok.tokens import Tokens

PREFIX = "tokens:"
_OPEN_SHARDS = 256  # files a process keeps open; systems allow 1024 or so


class TokenShards(Dataset[dict[str, Any]]):
    """Tokens, labels and captions of images in a folder of shards, keyed by (index, sample seed).

    Images are read when they are asked for, and what is read is checked. Of an image's views the sample
    seed picks one, as ``vistok.generate.TokenDataset`` does. A copy in another process opens the files anew.

    Args:
        folder: what ``vistok tokenize`` has written.

    Attributes:
        recipe: what the tokens depend on, from the manifest: tokenizer, data, views, ...
        classes: names of the classes.
        views: rows an image.
        num_tokens: columns of every item.
        codebook_size: of the ids, None for latents; channels: of latents, 0 for ids.
    Raises:
        DataError: the folder is missing, not finished, torn, or something else.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        manifest = Manifest.read(self.folder)
        if not manifest.pictures:
            raise DataError(
                f"the token shards in {folder} are not finished; the same `vistok tokenize` goes on with them"
            )
        self.recipe, self.classes = manifest.recipe, manifest.classes
        self.shards = [shard for shard in manifest.shards if shard.pictures]
        missing = [
            path.name
            for shard in self.shards
            for path in (tokens_path(self.folder, shard.number), facts_path(self.folder, shard.number))
            if not path.exists()
        ]
        if missing:
            raise DataError(
                f"{folder}: {len(missing)} files of token shards are missing: {', '.join(missing[:5])}; "
                "the same `vistok tokenize` makes them again"
            )
        self._ends = list(accumulate(shard.pictures for shard in self.shards))
        self.views: int = manifest.recipe["num_views"]
        self.num_tokens: int = manifest.recipe["num_tokens"]
        self._layout = layout = TokenFile.read_layout(tokens_path(self.folder, self.shards[0].number))
        self.codebook_size, self.channels = layout.codebook_size, layout.channels
        if layout.weight_hash != self.tokenizer["weight_hash"]:
            raise DataError(
                f"the token shards in {folder} are not those of its manifest: they are of {layout.weight_hash}, "
                f"and it names {self.tokenizer['weight_hash']}"
            )
        self._open: OrderedDict[int, tuple[TokenFile, ShardFacts]] = OrderedDict()
        self._process = os.getpid()

    @property
    def tokenizer(self) -> dict[str, str]:
        """``name``, ``family`` and ``weight_hash`` of the tokenizer."""
        return self.recipe["tokenizer"]

    @property
    def continuous(self) -> bool:
        """Whether they are latents."""
        return self.codebook_size is None

    @property
    def captions(self) -> Sequence[str]:
        """One an image, read when it is asked for."""
        return _Captions(self)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, key: tuple[int, int] | int) -> dict[str, Any]:
        """One image's tokens.

        Args:
            key: (index, sample seed), or an index alone for the first view.
        Returns:
            what ``TokenDataset`` gives: ``ids`` int64 [L] or ``latents`` [L, C] (0 past its length), ``length``, ``label``,
            ``caption``, ``index``, ``sample_seed``.
        Raises:
            TokenFileError: the image is damaged.
        """
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[tuple[int, int] | int]) -> list[dict[str, Any]]:
        """Several images' tokens, as a loader asks for a batch: unpacked together, which is much quicker."""
        pairs = [key if isinstance(key, tuple) else (key, None) for key in keys]
        records, labels, captions = [], [], []
        for index, seed in pairs:
            number, place = self._find(index)
            file, facts = self._opened(number)
            records.append(file.record(place * self.views + pick_view(seed, self.views)))
            labels.append(int(facts.label[place]))
            captions.append(facts.caption(place))
        tokens = self._layout.decode(records).truncate(self.num_tokens).pad(self.num_tokens)
        classes = torch.tensor(labels)
        return [
            token_item(tokens, row, label=classes[row], caption=captions[row], index=index, seed=seed)
            for row, (index, seed) in enumerate(pairs)
        ]

    def source_index(self, index: int) -> int:
        """The number that an image had in its source."""
        number, place = self._find(index)
        return int(self._opened(number)[1].index[place])

    def caption(self, index: int) -> str:
        """Of an image, "" for none."""
        number, place = self._find(index)
        return self._opened(number)[1].caption(place)

    def keep(self, num_tokens: int) -> None:
        """Give the first ``num_tokens`` tokens of every image only."""
        self.num_tokens = min(num_tokens, self.num_tokens)

    def _find(self, index: int) -> tuple[int, int]:
        """The shard of an image (by its place in ``shards``), and the image's place there."""
        if not 0 <= index < len(self):
            raise IndexError(f"the data set has {len(self)} images, got index {index}")
        shard = bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)

    def _opened(self, place: int) -> tuple[TokenFile, ShardFacts]:
        if self._process != os.getpid():  # a fork shares the files' positions with its parent
            self._open, self._process = OrderedDict(), os.getpid()
        if place not in self._open:
            self._open[place] = self._open_shard(self.shards[place])
            if len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)[1][0].close()
        self._open.move_to_end(place)
        return self._open[place]

    def _open_shard(self, shard: ShardRecord) -> tuple[TokenFile, ShardFacts]:
        file = TokenFile.open(tokens_path(self.folder, shard.number))
        facts = ShardFacts.read(facts_path(self.folder, shard.number))
        counts = (len(file), len(facts.index))
        if file.layout != self._layout or counts != (shard.pictures * self.views, shard.pictures):
            raise DataError(
                f"{self.folder}: shard {shard.number} does not belong to these: the manifest says {shard.pictures} images with "
                f"{self.views} views, got {counts[0]} rows for {counts[1]} images, or another tokenizer's; "
                "`vistok tokenize --check` tells which are wrong"
            )
        return file, facts

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}


class _Captions(Sequence[str]):
    def __init__(self, shards: TokenShards) -> None:
        self._shards = shards

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: Any) -> Any:
        return self._shards.caption(range(len(self))[index])


def pick_view(seed: int | None, views: int) -> int:
    """Which of an image's views a sample shows; the first without a seed."""
    return 0 if seed is None or views == 1 else stable_seed(seed, 0) % views


def token_item(
    tokens: Tokens, row: int, *, label: Tensor, caption: str, index: int, seed: int | None
) -> dict[str, Any]:
    """A row of tokens as an item of a training set."""
    values = {"latents": tokens.latents} if tokens.is_continuous else {"ids": tokens.ids}
    return {
        **{name: value[row] for name, value in values.items()},
        "length": tokens.lengths[row],
        "label": label,
        "caption": caption,
        "index": index,
        "sample_seed": 0 if seed is None else seed,
    }


def check_shards(folder: str | Path, *, progress: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
    """Read every byte of a folder of shards and compare it with the manifest.

    Args:
        folder: what ``vistok tokenize`` has written.
        progress: is told how many images each shard has.
    Returns:
        ``folder``, ``shards``, ``images``, ``rows``, and ``damaged``: what is wrong, a line a shard.
    Raises:
        DataError: the manifest is missing, damaged or not finished.
    """
    folder = Path(folder).expanduser()
    manifest = Manifest.read(folder)
    if not manifest.shards:
        raise DataError(f"the token shards in {folder} are not finished; the same `vistok tokenize` goes on with them")
    damaged = []
    for shard in manifest.shards:
        damaged.append(shard.damage(folder))
        progress(shard.pictures)
    return {
        "folder": str(folder),
        "shards": len(manifest.shards),
        "images": manifest.pictures,
        "rows": manifest.pictures * manifest.recipe["num_views"],
        "damaged": [damage for damage in damaged if damage],
    }
