"""Captions as conditions of generators that read CLIP: a state a word piece, and one embedding of the whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.models.text import caption_tower


@dataclass(frozen=True)
class CaptionCondition:
    """Features of captions, one row a caption (``vistok.models.text.ClipCaptionStates`` makes them).

    Attributes:
        states: [B, T, D].
        pooled: [B, E].
        null_states, null_pooled: of the empty caption, [1, T, D] and [1, E], which guidance leads away
            from; None where neither guidance nor training wants them.
        scores: how beautiful the pictures are, on LAION's scale from 1 to 10, [B]; None leaves it to the model.
    """

    states: Tensor
    pooled: Tensor
    null_states: Tensor | None = None
    null_pooled: Tensor | None = None
    scores: Tensor | None = None

    def __post_init__(self) -> None:
        states, pooled = self.states, self.pooled
        if states.ndim != 3 or pooled.ndim != 2 or len(states) != len(pooled) or not len(states):
            raise VistokError(
                f"features of captions are states [B, T, D] and embeddings [B, E], got {list(states.shape)} and "
                f"{list(pooled.shape)}"
            )
        if not (states.is_floating_point() and pooled.is_floating_point()):
            raise VistokError(f"features of captions are floats, got {states.dtype} and {pooled.dtype}")
        if (self.null_states is None) != (self.null_pooled is None):
            raise VistokError("the empty caption is given by null_states and null_pooled together, or not at all")
        if self.null_states is not None and (
            self.null_states.shape != (1, *states.shape[1:]) or self.null_pooled.shape != (1, *pooled.shape[1:])
        ):
            raise VistokError(
                f"the empty caption has features {[1, *states.shape[1:]]} and {[1, *pooled.shape[1:]]}, got "
                f"{list(self.null_states.shape)} and {list(self.null_pooled.shape)}"
            )
        if self.scores is not None and self.scores.shape != (len(states),):
            raise VistokError(f"{len(states)} captions have as many scores, got {list(self.scores.shape)}")

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, rows: Tensor | slice) -> CaptionCondition:
        """Some rows, by a tensor of their numbers or a slice."""
        rows = rows.to(self.device) if isinstance(rows, Tensor) else rows
        scores = None if self.scores is None else self.scores[rows]
        return dataclasses.replace(self, states=self.states[rows], pooled=self.pooled[rows], scores=scores)

    @property
    def device(self) -> torch.device:
        """Where the features are."""
        return self.states.device

    def to(self, device: torch.device, dtype: torch.dtype) -> CaptionCondition:
        """On another device, in another type."""
        moved = {
            field.name: None if (value := getattr(self, field.name)) is None else value.to(device, dtype)
            for field in dataclasses.fields(self)
        }
        return CaptionCondition(**moved)

    def null(self) -> CaptionCondition:
        """The empty caption for every row, with the rows' scores.

        Raises:
            VistokError: its features are not there.
        """
        if self.null_states is None:
            raise VistokError(
                "guidance and training want the empty caption's features too: give null_states and null_pooled, "
                "or the captions as strings"
            )
        states, pooled = self.null_states.expand_as(self.states), self.null_pooled.expand_as(self.pooled)
        return dataclasses.replace(self, states=states, pooled=pooled)

    def hide(self, hidden: Tensor) -> CaptionCondition:
        """The empty caption in the rows where ``hidden`` (bool [B]) is True."""
        null = self.null()
        return dataclasses.replace(
            self,
            states=torch.where(hidden[:, None, None], null.states, self.states),
            pooled=torch.where(hidden[:, None], null.pooled, self.pooled),
        )

    @staticmethod
    def cat(parts: Sequence[CaptionCondition]) -> CaptionCondition:
        """The rows of all; the first one's empty caption stands for all. All have scores, or none has."""
        scores = [part.scores for part in parts]
        if any(score is None for score in scores) and not all(score is None for score in scores):
            raise VistokError("some of these captions have scores and some have none; give all of them one, or none")
        return CaptionCondition(
            torch.cat([part.states for part in parts]),
            torch.cat([part.pooled for part in parts]),
            parts[0].null_states,
            parts[0].null_pooled,
            None if scores[0] is None else torch.cat(scores),
        )


def read_captions(condition: Any, tower: str, device: torch.device, *, title: str) -> CaptionCondition:
    """Captions, or features of captions, one or many, as one condition.

    Args:
        condition: a caption, features of captions, or a sequence of such; None is the empty caption.
        tower: the text tower that reads captions; see ``vistok.models.text.caption_tower``.
        device: where it works.
        title: what errors call the model.
    """
    if isinstance(condition, CaptionCondition):
        return condition
    entries = [condition] if condition is None or isinstance(condition, str) else condition
    if not isinstance(entries, Sequence) or not entries:
        raise VistokError(f"{title} takes captions, or features of captions (CaptionCondition), got {condition!r:.80}")
    if all(isinstance(entry, CaptionCondition) for entry in entries):
        return CaptionCondition.cat(entries)
    captions = ["" if entry is None else entry for entry in entries]
    if not all(isinstance(caption, str) for caption in captions):
        wrong = next(caption for caption in captions if not isinstance(caption, str))
        raise VistokError(f"{title} takes captions, or features of captions (CaptionCondition), got {wrong!r:.80}")
    # Each text is read once: captions made from classes repeat, and the empty one is wanted too.
    different = list(dict.fromkeys(["", *captions]))
    states, pooled = caption_tower(tower, device)(different)
    rows = torch.tensor([different.index(caption) for caption in captions], device=device)
    return CaptionCondition(states[rows], pooled[rows], states[:1], pooled[:1])
