"""Beam search, lookahead and search without a prior, on tiny models: what they equal, what they cost, what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vistok.errors import ConfigError, VistokError
from vistok.generate import DigitAR, DigitARConfig
from vistok.generate.gpt import Gpt, GptConfig
from vistok.hub import create_model
from vistok.models.flextok import FlexTok
from vistok.models.flextok_config import FlexTokConfig, RegisterTransformerSize
from vistok.search import ArFreeConfig, BeamConfig, Ensemble, LookaheadConfig, Verifier, search
from vistok.search.context import SearchContext
from vistok.search.prior import GeneratorPrior, candidate_seed
from vistok.search.result import Cost, best_first
from vistok.search.schedule import token_schedule
from vistok.seeds import stable_seed
from vistok.tokens import Tokens

SEEDS = [11, 22, 33]
CLASSES = [0, 4, 2]
SMALL = {"beam_width": 2, "candidates_per_beam": 3, "token_schedule": (1, 2, 4, 8)}


def brightness(images: Tensor, condition: list[Any]) -> Tensor:
    return images.mean(dim=(1, 2, 3))


class Likelihoods(Verifier):
    """The likelihood as a verifier that looks at images too."""

    name = "likelihoods"

    def __call__(self, images: Tensor, condition: list[Any], *, log_probs: Tensor, **facts: Any) -> Tensor:
        assert len(images) == len(log_probs)
        return log_probs.sum(dim=1)


@pytest.mark.parametrize("options", [{}, {"cfg_scale": 2.0}, {"temperature": 0.0}, {"branch_at": "step"}])
@pytest.mark.parametrize("method", ["beam", "lookahead"])
def test_one_row_and_one_candidate_are_plain_sampling(generator, tokenizer, method, options):
    result = search(
        generator,
        tokenizer,
        CLASSES,
        method=method,
        verifier=brightness,
        seeds=SEEDS,
        beam_width=1,
        candidates_per_beam=1,
        token_schedule=(1, 3, 8, 32),
        **options,
    )
    sampling = {name: value for name, value in options.items() if name != "branch_at"}
    plain = generator.generate(CLASSES, seeds=SEEDS, **sampling)
    assert result.tokens == plain.tokens
    torch.testing.assert_close(result.images, tokenizer.decode(plain.tokens))
    if method == "beam":
        assert result.cost.token_forwards == plain.token_forwards


def test_one_row_and_one_candidate_are_plain_sampling_of_gpt(generator):
    torch.manual_seed(0)
    gpt = Gpt(GptConfig(codebook_size=64, num_tokens=9, num_classes=5, width=32, depth=2, num_heads=2)).eval()
    one = {"beam_width": 1, "candidates_per_beam": 1}
    result = search(gpt, None, CLASSES, method="beam", seeds=SEEDS, token_schedule=(2, 9), cfg_scale=1.5, **one)
    assert result.tokens == gpt.generate(CLASSES, seeds=SEEDS, cfg_scale=1.5).tokens


@pytest.mark.parametrize("changes", [{}, {"branch_at": "step"}, {"sample": False}, {"scale_first_step": True}])
@pytest.mark.parametrize("method", ["beam", "lookahead"])
def test_an_image_depends_on_its_own_seed_alone(generator, tokenizer, method, changes):
    options = {"method": method, "verifier": brightness, "num_results": 2, **SMALL, **changes}
    together = search(generator, tokenizer, CLASSES, seeds=SEEDS, **options)
    apart = search(generator, tokenizer, CLASSES, seeds=SEEDS, batch_size=2, **options)
    for index in range(3):
        alone = search(generator, tokenizer, CLASSES[index], seeds=[SEEDS[index]], **options)
        rows = slice(2 * index, 2 * index + 2)
        for result in (together, apart):
            assert result.tokens[rows] == alone.tokens
            torch.testing.assert_close(result.scores[rows], alone.scores, atol=1e-5, rtol=0)
            torch.testing.assert_close(result.images[rows], alone.images, atol=1e-4, rtol=0)


def test_the_best_of_all_branches_are_kept(generator, tokenizer):
    result = search(generator, tokenizer, CLASSES, method="beam", verifier=brightness, seeds=SEEDS, **SMALL)
    assert [step.tokens.num_tokens for step in result.history] == [1, 2, 4, 8]
    assert [step.scores.shape[1] for step in result.history] == [3, 6, 6, 6]
    for before, step in zip(result.history, result.history[1:], strict=False):
        assert torch.equal(step.kept, best_first(step.scores)[:, :2])
        for image in range(3):
            beams = before.tokens.ids.unflatten(0, (3, -1))[image][before.kept[image]]
            prefixes = step.tokens.ids.unflatten(0, (3, -1))[image][:, : beams.shape[1]]
            assert torch.equal(prefixes, beams[step.parents[image]])
            groups = step.tokens.ids.unflatten(0, (3, 2, 3))[image]
            assert bool((groups[:, :1, :-1] == groups[:, :, :-1]).all())  # branches differ in the last token alone
            assert all(len(set(group[:, -1].tolist())) == 3 for group in groups)
        scores = brightness(tokenizer.decode(step.tokens), [])
        torch.testing.assert_close(step.scores.flatten(), scores.double(), atol=1e-5, rtol=0)
    assert result.best_at(-1, 1) == result.tokens[1]


def test_branches_of_a_whole_step_differ_from_its_first_token(generator):
    options = {"method": "beam", "seeds": SEEDS, "beam_width": 2, "candidates_per_beam": 3, "token_schedule": (4, 8)}
    result = search(generator, None, CLASSES, branch_at="step", **options)
    for step in result.history:
        new = step.tokens.ids.unflatten(0, (-1, 3))[..., -4:]
        assert all(len(set(group[:, 0].tolist())) == 3 for group in new)
        assert all(len({tuple(row) for row in group[:, 1:].tolist()}) == 3 for group in new)


class Spy(Verifier):
    """Counts what it is asked about."""

    name = "spy"

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: Tensor, condition: list[Any], **facts: Any) -> Tensor:
        self.seen += len(images)
        return brightness(images, condition)


@pytest.mark.parametrize("cfg_scale", [1.0, 2.0])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"branch_at": "step"},
        {"complete_after_search": True},
        {"method": "lookahead"},
        {"method": "lookahead", "lookahead_number": 3, "max_lookahead_step": 2},
        {"sample": False, "scale_first_step": True},
        {"replacement": True, "temperature": 0.2},
    ],
)
def test_the_account_is_what_was_done(generator, tokenizer, monkeypatch, changes, cfg_scale):
    read, decoded = [], []
    hook = generator.blocks[0].register_forward_hook(
        lambda _, args, __: read.append(args[0].shape[0] * args[0].shape[1])
    )
    decode = tokenizer.decode
    monkeypatch.setattr(
        tokenizer, "decode", lambda tokens, **kwargs: decoded.append(len(tokens)) or decode(tokens, **kwargs)
    )
    spy = Spy()
    options = {"method": "beam", **SMALL, **changes}
    result = search(generator, tokenizer, CLASSES, seeds=SEEDS, verifier=spy, cfg_scale=cfg_scale, **options)
    hook.remove()
    assert result.cost.token_forwards == sum(read)
    assert result.cost.decoder_passes == result.cost.decoder_forwards == sum(decoded)
    assert result.cost.verifier_calls == spy.seen
    different = sum(len(set(map(tuple, step.tokens.ids.tolist()))) for step in result.history)
    if len(changes) < 2 and "method" not in changes:  # equal candidates of different images are different
        assert result.cost.verifier_calls >= different + (3 if "complete_after_search" in changes else 0)


def test_the_prefix_is_read_once(generator):
    result = search(generator, None, CLASSES, method="beam", seeds=SEEDS, **SMALL)
    # The class; then every kept row reads each of its tokens but the last, whatever the number of its branches.
    assert result.cost.token_forwards == 3 + 3 * 2 * 7


def test_equal_candidates_are_decoded_once(generator, tokenizer):
    options = {**SMALL, "method": "beam", "replacement": True, "temperature": 0.1, "verifier": brightness}
    once = search(generator, tokenizer, CLASSES, seeds=SEEDS, **options)
    each = search(generator, tokenizer, CLASSES, seeds=SEEDS, deduplicate=False, **options)
    assert once.tokens == each.tokens and once.cost.decoder_passes < each.cost.decoder_passes
    assert each.cost.verifier_calls == sum(step.scores.numel() for step in each.history)


def test_repeated_entries(generator):
    options = {"method": "beam", "seeds": 1, "beam_width": 3, "candidates_per_beam": 2, "max_steps": 5}
    options |= {"geometric_base": 1.5, "branch_at": "last"}
    skipped = search(generator, None, 1, **options)
    assert [step.tokens.num_tokens for step in skipped.history] == [1, 2, 3, 5]
    shipped = search(generator, None, 1, repeat_entries=True, **options)
    assert [step.tokens.num_tokens for step in shipped.history] == [1, 1, 2, 3, 5]
    ids = shipped.history[1].tokens.ids.flatten().tolist()
    assert ids == [token for token in shipped.history[0].tokens.ids.flatten()[shipped.history[0].kept[0]] for _ in "ab"]


def test_schedules():
    facts = {"max_steps": 4, "max_tokens": 10}
    assert token_schedule("geometric", **facts) == (1, 2, 4, 8)
    assert token_schedule("linear", tokens_per_step=3, **facts) == (3, 6, 9, 10)
    assert token_schedule("fixed", start=8, **facts) == (9, 10, 10, 10)
    assert token_schedule((2, 20), **facts) == (2, 10)
    with pytest.raises(ConfigError, match="never fall"):
        token_schedule((4, 2), **facts)
    with pytest.raises(ConfigError, match="geometric, linear, fixed"):
        BeamConfig(token_schedule="cubic")


def test_completion_extends_and_scores_again(generator, tokenizer):
    options = {"method": "beam", "verifier": brightness, "seeds": SEEDS, "num_results": 4, **SMALL}
    plain = search(generator, tokenizer, CLASSES, **options)
    sorted_ = search(generator, tokenizer, CLASSES, complete_after_search=True, **options)
    shipped = search(generator, tokenizer, CLASSES, complete_after_search=True, sort_completed=False, **options)
    assert shipped.tokens.truncate(8) == plain.tokens and shipped.tokens.num_tokens == 32
    torch.testing.assert_close(shipped.scores, brightness(shipped.images, []).double(), atol=1e-5, rtol=0)
    assert bool((sorted_.scores.view(3, 4).diff(dim=1) <= 0).all())
    assert sorted(sorted_.scores.tolist()) == pytest.approx(sorted(shipped.scores.tolist()))


def test_lookahead_judges_what_rows_become(generator, tokenizer):
    result = search(
        generator, tokenizer, CLASSES, method="lookahead", verifier=brightness, seeds=SEEDS, lookahead_number=4, **SMALL
    )
    step = result.history[1]
    labels = [label for label in CLASSES for _ in range(6)]
    ahead = generator.generate(labels, prefix=step.tokens, length=6, temperature=0.0).tokens
    torch.testing.assert_close(
        step.scores.flatten(), brightness(tokenizer.decode(ahead), []).double(), atol=1e-5, rtol=0
    )
    assert result.tokens.num_tokens == 12 and result.history[-1].tokens.num_tokens == 8
    torch.testing.assert_close(brightness(result.images, []).double(), result.scores, atol=1e-5, rtol=0)


def test_looking_ahead_changes_no_draw(generator):
    beam = search(generator, None, CLASSES, method="beam", seeds=SEEDS, **SMALL)
    ahead = search(generator, None, CLASSES, method=LookaheadConfig(**SMALL, lookahead_number=0), seeds=SEEDS)
    assert ahead.tokens == beam.tokens


@pytest.mark.parametrize("method", ["best_of_n", "beam", "lookahead", "ar_free"])
def test_the_uniform_prior_needs_no_generator(tokenizer, method):
    options = {} if method == "best_of_n" else {"token_schedule": (1, 2, 3), "beam_width": 2}
    run = [
        search("uniform", tokenizer, "cat", method=method, budget=15, seeds=[5], verifier=brightness, **options)
        for _ in range(2)
    ]
    assert run[0].tokens == run[1].tokens and run[0].cost.token_forwards == 0
    several = search(
        "uniform", tokenizer, ["dog", "cat"], method=method, budget=15, seeds=[1, 5], verifier=brightness, **options
    )
    assert several.tokens[1] == run[0].tokens
    with pytest.raises(VistokError, match="asks a generator"):
        search("uniform", tokenizer, method=method, budget=15, verifier="likelihood", **options)


def test_ar_free_asks_the_verifier_alone_about_the_condition(generator, tokenizer):
    config = ArFreeConfig(max_steps=3, candidates_per_beam=6, beam_width=2)
    asked = []
    results = [
        search(
            generator,
            tokenizer,
            label,
            method=config,
            seeds=[3],
            verifier=lambda images, condition: asked.extend(condition) or brightness(images, condition),
        )
        for label in (1, 2)
    ]
    assert results[0].tokens == results[1].tokens and set(asked) == {1, 2}
    never = DigitAR(DigitARConfig(num_tokens=32, num_classes=5, class_dropout=0.0, width=16, depth=1, num_heads=1))
    with pytest.raises(VistokError, match="never trained without its condition"):
        search(never, tokenizer, 1, method=config, verifier=brightness)
    null = search(generator, tokenizer, None, method=BeamConfig(**vars(config)), seeds=[3], verifier=brightness)
    assert null.tokens == results[0].tokens


def test_going_on_from_a_prefix(generator, tokenizer):
    prefix = generator.generate([0, 0, 4, 4], seeds=1, length=2).tokens
    result = search(
        generator, tokenizer, [0, 4], method="beam", prefix=prefix, seeds=[1, 2], verifier=brightness, **SMALL
    )
    assert [step.tokens.num_tokens for step in result.history] == [3, 4, 6, 10]
    assert result.history[0].scores.shape == (2, 6)
    starts = result.history[0].tokens.ids[:, :2].unflatten(0, (2, 2, 3))
    assert torch.equal(starts, prefix.ids.view(2, 2, 1, 2).expand(-1, -1, 3, -1))


def test_a_budget_is_candidates_an_image(generator, tokenizer):
    for budget in (1, 4, 8, 17, 50):
        spy = Spy()
        result = search(
            generator,
            tokenizer,
            1,
            method="beam",
            verifier=spy,
            seeds=1,
            budget=budget,
            beam_width=2,
            token_schedule=(1, 2, 4, 8),
            deduplicate=False,
        )
        assert result.cost.verifier_calls == spy.seen <= budget
        branches, lengths = result.history[0].scores.shape[1], [step.tokens.num_tokens for step in result.history]
        more = BeamConfig(beam_width=2, token_schedule=tuple(lengths), candidates_per_beam=branches + 1)
        assert more.num_candidates(32) > budget and lengths[-1] == 8
        assert branches > 1 or budget == 1  # a short schedule before rows that never branch
        assert lengths == {1: [8], 4: [8], 8: [1, 8]}.get(budget, [1, 2, 4, 8])


def test_an_ensemble_ranks_the_candidates_of_each_image(generator, tokenizer):
    def red(images: Tensor, condition: list[Any]) -> Tensor:
        return images[:, 0].mean(dim=(1, 2))

    class Of(Verifier):
        def __init__(self, function: Any) -> None:
            self.function, self.name = function, function.__name__

        def __call__(self, images: Tensor, condition: list[Any], **facts: Any) -> Tensor:
            return self.function(images, condition)

    ensemble = Ensemble([Of(brightness), Of(red)], [1.0, 2.0])
    options = {"method": "beam", "verifier": ensemble, **SMALL}
    together = search(generator, tokenizer, CLASSES, seeds=SEEDS, **options)
    for index in range(3):
        alone = search(generator, tokenizer, CLASSES[index], seeds=[SEEDS[index]], batch_size=2, **options)
        assert together.tokens[index] == alone.tokens
    nested = search(generator, tokenizer, CLASSES, seeds=SEEDS, verifier=ensemble, budget=9, batch_size=4)
    ranks = nested.history[0].scores
    assert bool((ranks.amax(dim=1) <= 1).all() and (ranks.amin(dim=1) >= 0).all())


def test_a_tokenizer_that_wants_all_tokens(generator, tokenizer):
    fixed = create_model("titok_tiny_32.emoji", tail_drop="none")
    options = {"verifier": brightness, "seeds": [1], **SMALL}
    with pytest.raises(VistokError, match="no fewer"):
        search(generator, fixed, 1, method="beam", **options)
    ahead = search(generator, fixed, 1, method="lookahead", **options)
    assert ahead.tokens.num_tokens == 32
    filled = search(generator, fixed, 1, method="beam", fill=0, **options)
    padded = filled.tokens.pad(32).replace(lengths=[32])
    torch.testing.assert_close(filled.images, fixed.decode(padded))


def _tiny_flextok() -> FlexTok:
    """With random weights everywhere: fresh ones have zeros, with which every image is the same."""
    torch.manual_seed(0)
    size = RegisterTransformerSize(width=32, depth=1, head_dim=16)
    sizes = {"vae": "none", "patch_size": 4, "grid_size": (4, 4), "num_tokens": 12, "levels": (8, 5, 4)}
    model = FlexTok(FlexTokConfig(**sizes, encoder=size, decoder=size, repa_dim=0, intermediate_layers=())).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=(parameter[0].numel() if parameter.ndim > 1 else 4) ** -0.5)
    return model.requires_grad_(False)


def test_the_unconditional_half_is_shared_by_images_of_the_same_noise():
    model = _tiny_flextok()
    ids = torch.randint(160, (5, 6), generator=torch.Generator().manual_seed(0))
    tokens = Tokens(ids, codebook_size=(8, 5, 4))
    noise = model.decode_noise([1, 1, 2, 1, 2])["noise"]
    read = []
    hook = model.decoder.register_forward_hook(lambda *call: read.append(len(call[2][0])))
    together = model.decode(tokens, noise=noise, steps=2, guidance=3.0)
    hook.remove()
    assert read == [5, 2, 10]
    alone = [model.decode(tokens[row], noise=noise[row : row + 1], steps=2, guidance=3.0) for row in range(5)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=0)


def test_decoding_noise_is_shared_by_the_candidates_of_an_image():
    flextok = _tiny_flextok()
    size = flextok.codebook_size
    shape = {"num_tokens": flextok.num_tokens, "num_classes": 3, "width": 16, "depth": 1, "num_heads": 1}
    generator = DigitAR(DigitARConfig(codebook_size=size, **shape)).eval()
    seen = []

    def look(images: Tensor, condition: list[Any]) -> Tensor:
        seen.append(images)
        return brightness(images, condition)

    options = {"seeds": [1], "verifier": look, "decode_options": {"steps": 2, "guidance": 2.0}}
    result = search(generator, flextok, 1, method="beam", **options, **SMALL)
    noise = flextok.decode_noise([stable_seed(1, "decode")])
    torch.testing.assert_close(
        flextok.decode(result.tokens, steps=2, guidance=2.0, **noise), result.images, atol=1e-4, rtol=0
    )
    assert result.cost.decoder_forwards == 4 * result.cost.decoder_passes
    previews = search(generator, flextok, 1, method="beam", preview={"steps": 1, "guidance": 1}, **options, **SMALL)
    assert previews.cost.decoder_forwards == previews.cost.decoder_passes - 1 + 4
    again = search(generator, flextok, 1, budget=3, method="best_of_n", temperature=0.0, **options)
    own = search(generator, flextok, 1, budget=3, method="best_of_n", temperature=0.0, own_noise=True, **options)
    assert len(set(again.history[0].scores[0].tolist())) == 1 and len(set(own.history[0].scores[0].tolist())) == 3
    torch.testing.assert_close(brightness(own.images, []).double(), own.scores, atol=1e-5, rtol=0)


def test_rows_are_copied_and_selected(generator):
    prior = GeneratorPrior(generator)
    rows = prior.start([1, 2], [5, 6], None, Cost())
    rows.draw(3, 4)
    copy = rows.copy()
    copy.draw(2, sample=False)
    before = rows.ids
    rows.select(torch.tensor([7, 0]))
    rows.draw(1)
    assert torch.equal(rows.ids[:, :3], before[[7, 0]]) and copy.ids.shape == (8, 5)
    assert isinstance(rows.log_probs, Tensor) and SearchContext.__dataclass_fields__["deduplicate"].default


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "bean"}, "did you mean beam"),
        ({"method": 3}, "its configuration"),
        ({"beam_width": 0}, "1 or more"),
        ({"branch_at": "first"}, "'last' token or over the whole 'step'"),
        ({"budget": 0}, "1 or more candidates"),
        ({"candidates_per_beam": 5000}, "4096 ids"),
        ({"beam_with": 3}, "no option 'beam_with'"),
        ({"generator": "normal"}, "or from 'uniform'"),
        ({"generator": "uniform", "temperature": 2.0}, "no sampling options"),
        ({"generator": "uniform", "tokenizer": None, "verifier": "likelihood"}, "give a tokenizer"),
        ({"length": 0}, "1 to 32 tokens"),
        ({"geometric_base": 0.5, "token_schedule": "geometric"}, "1 or more"),
        ({"method": "lookahead", "lookahead_number": -2}, "-1 for all"),
    ],
)
def test_bad_input(generator, tokenizer, changes, message):
    arguments = {"generator": generator, "tokenizer": tokenizer, "condition": 1, "method": "beam"}
    arguments |= {"verifier": brightness, **SMALL, **changes}
    with pytest.raises(VistokError, match=message):
        search(**arguments)


def test_shipped_likelihood_is_of_what_tokens_were_drawn_from(generator: DigitAR) -> None:
    """The official prior gives the guided, tempered log-probabilities of a step, and none of rows that it completes."""
    options = {"cfg_scale": 3.0, "temperature": 0.7}
    found = {
        name: search(generator, None, 2, method="best_of_n", n_samples=4, verifier=name, seeds=[5], **options).history[
            0
        ]
        for name in ("likelihood_as_shipped", "likelihood")
    }
    seeds = [candidate_seed(5, row) for row in range(4)]
    drawn = generator.generate([2] * 4, seeds=seeds, return_log_probs=True, **options)
    assert torch.equal(found["likelihood"].tokens.ids, drawn.tokens.ids)
    for name, log_probs in (("likelihood_as_shipped", drawn.draw_log_probs), ("likelihood", drawn.log_probs)):
        torch.testing.assert_close(found[name].scores[0], log_probs.sum(dim=1).double(), atol=1e-3, rtol=0)
    beam = BeamConfig(beam_width=2, candidates_per_beam=3, token_schedule=(1, 2), complete_after_search=True)
    completed = search(generator, None, 2, method=beam, verifier="likelihood_as_shipped", seeds=[5], **options)
    assert completed.scores.tolist() == [0.0]
