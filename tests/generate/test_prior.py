"""Entropy coding with a generator as the prior: exact, checked, tied to the very weights, and smaller where it knows."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.entropy import FrequencyTable
from vistok.errors import TokenFileError, VistokError
from vistok.generate import DigitAR, DigitARConfig
from vistok.generate import prior as module
from vistok.generate.flexar import FlexAR, FlexARConfig, TextConfig
from vistok.generate.flexar_blocks import AttentionConfig
from vistok.generate.gpt import Gpt, GptConfig
from vistok.generate.prior import LearnedPrior
from vistok.generate.sampling import SamplingConfig
from vistok.token_file import TokenFile, TokenWriter
from vistok.tokens import Tokens

pytest.importorskip("constriction")

LEVELS = (5, 4, 3)


def generator(head: str = "digits_chain", *, seed: int = 0, codebook: int | tuple[int, ...] = LEVELS) -> DigitAR:
    torch.manual_seed(seed)
    size = {"width": 16, "depth": 1, "num_heads": 2, "num_tokens": 20, "num_classes": 3}
    return DigitAR(DigitARConfig(codebook_size=codebook, head=head, **size)).eval()


def drawn(model: DigitAR, count: int, *, seed: int = 0) -> Tokens:
    """Tokens as the model makes them, of different lengths."""
    tokens = model.generate(None, count, seeds=seed).tokens
    return tokens.truncate([1 + (7 * row) % tokens.num_tokens for row in range(count)])


def written(tokens: Tokens, path: Path, prior: object) -> TokenFile:
    with TokenWriter(path, prior=prior, embed=False) as writer:
        writer.write(tokens)
    return TokenFile.open(path, prior=prior)


@pytest.mark.parametrize("head", ["digits_chain", "digits", "softmax"])
def test_tokens_come_back(head: str, tmp_path: Path) -> None:
    model = generator(head)
    tokens = drawn(model, 6)
    prior = LearnedPrior(model)
    file = written(tokens, tmp_path / "a.vtk", prior)
    assert file.read_all().ids.tolist() == tokens.ids.tolist()
    assert file[3].ids[0].tolist() == tokens.ids[3, : int(tokens.lengths[3])].tolist()
    raw = np.random.default_rng(0).integers(0, math.prod(LEVELS), (3, 20))  # nothing that the model expects
    odd = Tokens(torch.from_numpy(raw), codebook_size=LEVELS)
    assert written(odd, tmp_path / "b.vtk", prior).read_all() == odd


@pytest.mark.parametrize("positions", ["learned", "rotary_2d"])
def test_a_gpt_is_a_prior_too(positions: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    size = {"num_tokens": 16, "num_classes": 3, "width": 32, "depth": 2, "num_heads": 2}
    model = Gpt(GptConfig(codebook_size=30, positions=positions, **size)).eval()
    with torch.no_grad():
        model.head.weight.normal_()
    tokens = model.generate(None, 3, seeds=1).tokens
    assert written(tokens, tmp_path / "a.vtk", LearnedPrior(model)).read_all().ids.tolist() == tokens.ids.tolist()


def test_a_prior_that_knows_takes_fewer_bytes(tmp_path: Path) -> None:
    model = generator()
    with torch.no_grad():  # a model that is surer of what comes
        model.head.out_weight.mul_(4.0)
    tokens = model.generate(None, 40, seeds=3).tokens
    learned = written(tokens, tmp_path / "learned.vtk", LearnedPrior(model))
    static = written(tokens, tmp_path / "static.vtk", FrequencyTable.fit([tokens]))
    assert learned.sizes.mean() < static.sizes.mean() - 2.5
    # And no more than the model's own likelihood says, but for lengths, checks and whole bytes.
    bits = -model.log_prob(tokens) / math.log(2)
    blocks = 3  # of 8, 16 and 20 tokens
    expected = (bits.double().numpy() + 24 * blocks) / 8
    assert np.abs(learned.sizes - expected - 2.5).max() < 1.5


def test_a_prior_that_expects_something_else_costs_little(tmp_path: Path) -> None:
    """Its tokens are told to be coded without it, which soon is what is expected."""
    model = generator()
    with torch.no_grad():
        model.head.out_weight.mul_(20.0)
    surprising = Tokens(torch.randint(60, (30, 20), generator=torch.Generator().manual_seed(1)), codebook_size=LEVELS)
    learned = written(surprising, tmp_path / "learned.vtk", LearnedPrior(model))
    bits = -model.log_prob(surprising) / math.log(2)
    assert float(bits.mean()) > 8 * 40  # as the model alone would have it
    assert learned.read_all().ids.tolist() == surprising.ids.tolist()
    packed = written(surprising, tmp_path / "packed.vtk", None)
    assert learned.sizes.mean() < packed.sizes.mean() + 4


def test_the_model_must_be_the_very_same(tmp_path: Path) -> None:
    model = generator()
    tokens = drawn(model, 3)
    written(tokens, tmp_path / "a.vtk", LearnedPrior(model))
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.pos_embed.view(-1)[11] += 1e-6
    for given_prior, words in ((None, "none was given"), (LearnedPrior(other), "the one given is")):
        with pytest.raises(TokenFileError, match=words):
            TokenFile.open(tmp_path / "a.vtk", prior=given_prior)


def test_how_a_model_is_sampled_does_not_change_its_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does the name of its tokenizer; what its distributions depend on does."""
    model = generator()
    before = LearnedPrior(model).hash
    model.config = replace(
        model.config, sampling=SamplingConfig(temperature=0.5), tokenizer_model="x", class_dropout=0.3
    )
    assert LearnedPrior(model).hash == before
    model.config = replace(model.config, num_heads=4)  # the same weights, read in another way
    assert LearnedPrior(model).hash != before


@pytest.mark.parametrize("noise", [1e-12, 1e-10])
def test_rounding_elsewhere_changes_nothing(noise: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder whose arithmetic differs in the last digits."""
    model = generator()
    tokens = drawn(model, 8)
    prior = LearnedPrior(model)
    written(tokens, tmp_path / "a.vtk", prior)
    exact = type(prior.generator).factor_logits
    draws = torch.Generator().manual_seed(0)

    def shaken(self, hidden, earlier):
        logits = exact(self, hidden, earlier)
        return logits + noise * torch.randn(logits.shape, generator=draws, dtype=logits.dtype)

    monkeypatch.setattr(type(prior.generator), "factor_logits", shaken)
    assert TokenFile.open(tmp_path / "a.vtk", prior=prior).read_all().ids.tolist() == tokens.ids.tolist()


def test_what_could_be_rounded_either_way_is_coded_without_the_model(tmp_path: Path, monkeypatch) -> None:
    model = generator()
    tokens = drawn(model, 8)
    plain = written(tokens, tmp_path / "a.vtk", LearnedPrior(model)).sizes.sum()
    monkeypatch.setattr(module, "_UNSURE", 0.05)  # now a tenth of all logits are unsure
    file = written(tokens, tmp_path / "b.vtk", LearnedPrior(model))
    monkeypatch.setattr(module, "_UNSURE", 1e-8)  # the decoder goes by what the encoder says
    assert file.sizes.sum() > plain
    assert TokenFile.open(tmp_path / "b.vtk", prior=LearnedPrior(model)).read_all().ids.tolist() == tokens.ids.tolist()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_damage_never_gives_wrong_tokens(data: st.DataObject) -> None:
    model = generator()
    prior = LearnedPrior(model)
    layout = written_layout(prior)
    tokens = drawn(model, 1, seed=data.draw(st.integers(0, 5)))
    record = layout.encode(tokens)[0]
    cut = data.draw(st.integers(0, len(record)))
    found = layout.decode_prefix(record[:cut])
    assert found.ids[0].tolist() == tokens.ids[0, : found.num_tokens].tolist()
    flipped = bytearray(record)
    flipped[data.draw(st.integers(0, len(record) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    found = layout.decode_prefix(bytes(flipped), damaged="prefix")
    assert found.ids[0].tolist() == tokens.ids[0, : found.num_tokens].tolist()


def written_layout(prior: LearnedPrior):
    from vistok.token_layout import TokenLayout

    return TokenLayout.of(Tokens(torch.zeros(1, 1, dtype=torch.int64), codebook_size=LEVELS), prior)


def test_generators_that_are_no_priors_are_refused() -> None:
    always = DigitAR(DigitARConfig(width=16, depth=1, num_heads=2, class_dropout=0.0))
    with pytest.raises(VistokError, match="always saw its condition"):
        LearnedPrior(always)
    reads = FlexAR(
        FlexARConfig(width=32, depth=1, attention=AttentionConfig(2), reading=AttentionConfig(2), text=TextConfig())
    )
    with pytest.raises(VistokError, match="reads captions by a text encoder"):
        LearnedPrior(reads)
    with pytest.raises(VistokError, match="autoregressive"):
        LearnedPrior(torch.nn.Linear(2, 2))
    with pytest.raises(VistokError, match="levels"):
        layout_tokens = Tokens(torch.zeros(1, 1, dtype=torch.int64), codebook_size=8)
        from vistok.token_layout import TokenLayout

        TokenLayout.of(layout_tokens, LearnedPrior(generator()))
