"""``search``: spend compute on choosing among tokens instead of on a larger model (arXiv:2604.15453)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vistok.errors import VistokError, nearest
from vistok.generate.base import Generator
from vistok.generate.sampling import row_seeds
from vistok.models.base import Tokenizer
from vistok.search.best_of_n import best_of_n
from vistok.search.result import Cost, SearchResult, SearchStep
from vistok.search.verifiers import Verifier, as_verifier, check_scores
from vistok.tokens import Tokens
