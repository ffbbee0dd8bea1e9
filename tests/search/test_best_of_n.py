"""``vistok.search`` with best-of-N: nested seeds, exact costs, ties, errors."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

import vistok
from vistok.errors import VistokError
from vistok.generate import DigitAR, DigitARConfig
from vistok.hub import create_model
from vistok.search import LikelihoodVerifier, Verifier, search
from vistok.search.result import Cost, best_first
from vistok.search.run import condition_rows
from vistok.search.verifiers import SimilarityVerifier
from vistok.seeds import stable_seed
from vistok.tokens import Tokens

SEEDS = [11, 22, 33]
CLASSES = [0, 4, 2]
# Scores of the same candidates drawn in batches of different sizes differ by rounding.
ROUNDING = 2e-4


def brightness(images: Tensor, condition: list[Any]) -> Tensor:
    """A verifier as a user would write it."""
    assert len(condition) == len(images)
    return images.mean(dim=(1, 2, 3))


def test_a_budget_of_one_is_plain_sampling(generator, tokenizer):
    result = search(generator, tokenizer, CLASSES, budget=1, seeds=SEEDS, temperature=0.9)
    plain = generator.generate(CLASSES, seeds=SEEDS, temperature=0.9).tokens
    assert result.tokens == plain
    torch.testing.assert_close(result.images, tokenizer.decode(plain))


@pytest.mark.parametrize("verifier", ["likelihood", brightness])
def test_more_budget_never_gives_a_worse_score(generator, tokenizer, verifier):
    budgets = (1, 2, 3, 5, 8, 13)
    results = [search(generator, tokenizer, CLASSES, budget=n, seeds=SEEDS, verifier=verifier) for n in budgets]
    scores = torch.stack([result.scores for result in results])
    assert bool((scores.diff(dim=0) >= -ROUNDING).all())
    assert bool((scores[-1] > scores[0]).any())
    largest = results[-1].history[-1]
    for budget, result in zip(budgets, results, strict=True):
        # Smaller searches are contained in the largest, candidate by candidate, and can be read off it.
        ids = largest.tokens.ids.view(3, 13, -1)[:, :budget].flatten(0, 1)
        assert torch.equal(result.history[-1].tokens.ids, ids)
        assert largest.tokens[largest.best_of(budget)] == result.tokens


@pytest.mark.parametrize("batch_size", [2, 7, 100])
def test_batches_do_not_matter(generator, tokenizer, batch_size):
    whole = search(generator, tokenizer, CLASSES, budget=5, seeds=SEEDS, verifier=brightness, num_results=2)
    part = search(
        generator, tokenizer, CLASSES, budget=5, seeds=SEEDS, verifier=brightness, num_results=2, batch_size=batch_size
    )
    assert part.tokens == whole.tokens
    assert part.history[-1].tokens == whole.history[-1].tokens
    torch.testing.assert_close(part.scores, whole.scores, atol=1e-5, rtol=0)
    torch.testing.assert_close(part.images, whole.images, atol=1e-4, rtol=0)


class Counting(Verifier):
    """Counts what it is given."""

    name = "counting"

    def __init__(self, *, needs_images: bool) -> None:
        self.needs_images = needs_images
        self.candidates = 0

    def __call__(
        self,
        images: Tensor | None,
        condition: list[Any],
        *,
        tokens: Tokens | None = None,
        log_probs: Any = None,
        num_new: int | None = None,
    ) -> Tensor:
        assert (images is not None) == self.needs_images
        assert len(condition) == len(tokens) == len(log_probs)
        self.candidates += len(tokens)
        return log_probs.sum(dim=-1)


@pytest.mark.parametrize("needs_images", [False, True])
@pytest.mark.parametrize("batch_size", [3, 100])
@pytest.mark.parametrize("cfg_scale", [1.0, 2.0])
def test_the_account_is_what_was_done(generator, tokenizer, monkeypatch, needs_images, batch_size, cfg_scale):
    read, decoded = [], []
    hook = generator.blocks[0].register_forward_hook(
        lambda _, args, __: read.append(args[0].shape[0] * args[0].shape[1])
    )
    decode = tokenizer.decode
    monkeypatch.setattr(
        tokenizer, "decode", lambda tokens, **kwargs: decoded.append(len(tokens)) or decode(tokens, **kwargs)
    )
    verifier = Counting(needs_images=needs_images)
    result = search(
        generator,
        tokenizer,
        CLASSES,
        budget=4,
        seeds=SEEDS,
        verifier=verifier,
        batch_size=batch_size,
        cfg_scale=cfg_scale,
    )
    hook.remove()
    assert result.cost.token_forwards == sum(read)
    assert result.cost.decoder_passes == sum(decoded) == (12 if needs_images else 3)
    assert result.cost.verifier_calls == verifier.candidates == 12
    assert result.cost.seconds > 0
    if batch_size == 100:  # the condition is read once for its candidates, and nothing follows the last token
        assert result.cost.token_forwards == (3 + 12 * 31) * (2 if cfg_scale != 1 else 1)


def test_likelihood_is_the_models_own(generator):
    result = search(generator, None, CLASSES, budget=3, seeds=SEEDS, cfg_scale=2.0, top_k=3)
    expected = generator.log_prob(result.tokens, CLASSES).double()
    torch.testing.assert_close(result.scores, expected, atol=1e-3, rtol=0)
    assert result.images is None and result.cost.decoder_passes == 0
    again = LikelihoodVerifier(generator)(None, CLASSES, tokens=result.tokens)
    torch.testing.assert_close(again, result.scores, atol=ROUNDING, rtol=0)


def test_ties_go_to_the_lowest_index(generator, tokenizer):
    result = search(
        generator, tokenizer, CLASSES, budget=6, seeds=SEEDS, verifier=lambda images, _: torch.zeros(len(images))
    )
    assert result.history[-1].kept.tolist() == [[0]] * 3
    assert result.tokens == generator.generate(CLASSES, seeds=SEEDS).tokens
    assert best_first(torch.tensor([[1.0, 3.0, 3.0, 2.0]])).tolist() == [[1, 2, 3, 0]]


def test_several_results_come_best_first(generator, tokenizer):
    result = search(generator, tokenizer, CLASSES, budget=6, seeds=SEEDS, verifier=brightness, num_results=3)
    scores = result.scores.view(3, 3)
    assert bool((scores.diff(dim=1) <= 0).all())
    torch.testing.assert_close(scores, result.history[-1].scores.topk(3, dim=1).values)
    torch.testing.assert_close(brightness(result.images, [None] * 9).double(), result.scores, atol=1e-5, rtol=0)


def test_short_candidates(generator, tokenizer):
    result = search(generator, tokenizer, 1, budget=3, seeds=5, length=4, verifier=brightness)
    assert result.tokens.lengths.tolist() == [4]
    assert result.images.shape == (1, 3, 64, 64)
    assert result.verifier == "brightness" and result.method == "best_of_n"


def test_no_condition_and_one_seed_for_all(generator):
    one = search(generator, None, None, budget=2, seeds=3)
    assert one.tokens == search(generator, None, [None], budget=2, seeds=[stable_seed(3, 0)]).tokens
    assert (
        search(generator, None, [1, 2], budget=2, seeds=3).tokens
        == search(generator, None, [1, 2], budget=2, seeds=3).tokens
    )
    assert condition_rows(torch.tensor([1, 2])) == [1, 2] and condition_rows("cat") == ["cat"]
    image = torch.rand(3, 8, 8)
    assert [len(condition_rows(given)) for given in (image, [image], image[None], torch.stack([image] * 4))] == [
        1,
        1,
        1,
        4,
    ]


def test_an_image_as_the_condition(generator, tokenizer):
    images = tokenizer.decode(generator.generate(CLASSES, seeds=SEEDS).tokens)
    look = SimilarityVerifier(lambda x, y: -(x - y).square().mean(dim=(1, 2, 3)))
    options = {"verifier": look, "seeds": 7, "beam_width": 3, "candidates_per_beam": 4, "token_schedule": (1, 4, 32)}
    for prior, method in ((generator, "ar_free"), ("uniform", "beam")):
        one = search(prior, tokenizer, images[1], method=method, **options)
        assert one.images.shape == (1, 3, 64, 64)
        torch.testing.assert_close(one.scores, look(one.images, [images[1]]).double())
        both = search(prior, tokenizer, images[:2], method=method, **options)
        assert len(both.tokens) == 2 and both.scores[0] != both.scores[1]
    for given in (images[1], list(images)):
        with pytest.raises(VistokError, match="method='ar_free'"):
            search(generator, tokenizer, given, budget=2, verifier=look)
    with pytest.raises(VistokError, match=r"takes class numbers or names, got a tensor \[3, 64, 64\]"):
        generator.generate(list(images))


def test_the_package_can_be_called(generator):
    importlib.import_module("vistok.search")
    assert (
        vistok.search(generator, None, 1, budget=2, seeds=0).tokens
        == search(generator, None, 1, budget=2, seeds=0).tokens
    )


def test_the_cost_of_two_searches_adds_up():
    assert Cost(1, 2, 3, 4, 5.0) + Cost(10, 20, 30, 40, 50.0) == Cost(11, 22, 33, 44, 55.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "best_of_m"}, "did you mean best_of_n"),
        ({"verifier": "likelyhood"}, "did you mean likelihood"),
        ({"verifier": 3}, "function of"),
        ({"budget": 0}, "1 or more"),
        ({"num_results": 3}, "1 to budget=2"),
        ({"condition": 17}, "classes 0 to 4"),
        ({"temperatur": 1.0}, "did you mean temperature"),
        ({"length": 33}, "1 to 32 tokens"),
        ({"seeds": [1, 2]}, "1 rows want 1 seeds"),
        ({"tokenizer": None, "verifier": brightness}, "needs a tokenizer"),
        ({"verifier": lambda images, _: images}, "one finite score"),
        ({"verifier": lambda images, _: torch.full((len(images),), float("nan"))}, "one finite score"),
    ],
)
def test_bad_input(generator, tokenizer, changes, message):
    arguments = {"generator": generator, "tokenizer": tokenizer, "condition": 1, "budget": 2, **changes}
    with pytest.raises(VistokError, match=message):
        search(**arguments)


def test_models_must_fit_each_other(generator, tokenizer, caplog):
    other = DigitAR(DigitARConfig(codebook_size=(4, 4), width=16, depth=1, num_heads=1))
    with pytest.raises(VistokError, match="the tokenizer it was trained with"):
        search(other, tokenizer, 1)
    fixed = create_model("titok_tiny_32.emoji", tail_drop="none")
    with pytest.raises(VistokError, match="no fewer"):
        search(generator, fixed, 1, length=3)
    stamped = DigitAR(DigitARConfig(num_classes=5, width=16, depth=1, num_heads=1, tokenizer_hash="feed"))
    search(stamped, tokenizer, 1, budget=1)
    assert "the images mean nothing" in caplog.text
