"""Generators that fill in masked tokens (MaskGIT, MaskGen): the loop by hand, and the contract in every variant."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.convert import recognise
from vistok.convert.maskgit import published_sampling
from vistok.errors import ConfigError, VistokError
from vistok.generate.captions import CaptionCondition
from vistok.generate.masked import MaskedSamplingConfig, RowNoise, fill_ids, gumbel, masked_counts, masks_of
from vistok.generate.maskgen import MaskGen, MaskGenConfig, MaskGenSampling
from vistok.generate.maskgit import MaskGit, MaskGitConfig
from vistok.hub import convert_state, from_pretrained, save_published, to_published
from vistok.tokens import Tokens

K, L, CLASSES, WORDS = 24, 9, 5, 12
_GIT = {
    "codebook_size": K,
    "num_tokens": L,
    "num_classes": CLASSES,
    "width": 32,
    "depth": 2,
    "num_heads": 2,
    "hidden_width": 48,
    "sampling": MaskedSamplingConfig(steps=4, cfg_scale=2.0, cfg_schedule="linear"),
}
_GEN = {
    "num_tokens": L,
    "width": 32,
    "depth": 2,
    "num_heads": 2,
    "head_width": 16,
    "head_depth": 1,
    "text_dim": WORDS,
    "micro_dim": 8,
    "text_tower": "tiny",
}
KINDS: dict[str, Any] = {
    "bert": MaskGitConfig(**_GIT),
    "uvit": MaskGitConfig(**_GIT, network="uvit"),
    "maskgen_vq": MaskGenConfig(
        **_GEN, codebook_size=K, spare_rows=CLASSES + 1, sampling=MaskGenSampling(steps=4, cfg_scale=2.0)
    ),
    "maskgen_kl": MaskGenConfig(
        **_GEN,
        kind="kl",
        codebook_size=None,
        code_dim=4,
        sampling=MaskGenSampling(steps=4, diffusion_steps=3, cfg_scale=2.0),
    ),
}


def make(kind: str, seed: int = 0) -> Any:
    """A tiny one with weights that are all random, so that nothing that starts at zero hides."""
    torch.manual_seed(seed)
    config = KINDS[kind]
    model = (MaskGit if isinstance(config, MaskGitConfig) else MaskGen)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Latents of larger random weights grow so much that their rounding shows.
            parameter.add_(torch.randn_like(parameter) * (0.03 if kind == "maskgen_kl" else 0.1))
    return model


def conditions(model: Any, rows: int) -> Any:
    generator = torch.Generator().manual_seed(3)
    if isinstance(model, MaskGit):
        return torch.randint(0, CLASSES, (rows,), generator=generator)
    draw = [torch.randn(rows, 5, WORDS, generator=generator), torch.randn(rows, WORDS, generator=generator)]
    null = [torch.randn(1, 5, WORDS, generator=generator), torch.randn(1, WORDS, generator=generator)]
    return CaptionCondition(*draw, null_states=null[0], null_pooled=null[1])


def content_of(model: Any, rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    if model.continuous:
        return torch.randn(rows, L, 4, generator=generator)
    return torch.randint(K, (rows, L), generator=generator)


def made(result: Any) -> torch.Tensor:
    return result.tokens.latents if result.tokens.is_continuous else result.tokens.ids


@pytest.fixture(params=sorted(KINDS))
def model(request: pytest.FixtureRequest) -> Any:
    return make(request.param)


def test_guidance_that_falls_to_1_reads_both_halves_until_then() -> None:
    """MaskGen's c + w * (c - u) with w from 1 to 0."""
    model = make("maskgen_vq")
    options = {"seeds": 3, "cfg_scale": 1.0, "cfg_schedule": "linear", "cfg_floor": 2.0, "steps": 4}
    result = model.generate(conditions(model, 2), **options)
    assert result.token_forwards == (2 + 2 + 2 + 1) * 2 * (L + 5)
    constant = model.generate(conditions(model, 2), **options | {"cfg_schedule": "constant"})
    assert constant.token_forwards == 4 * 2 * (L + 5)


@pytest.mark.parametrize(("width", "hidden_width"), [(44, 120), (28, 244), (60, 492)])
def test_every_width_of_the_mlps_is_kept(width: int, hidden_width: int) -> None:
    """Their ratio is no number that floating point has."""
    changes = {"width": width, "hidden_width": hidden_width, "network": "uvit"}
    model = MaskGit(MaskGitConfig(**_GIT | changes))
    state, wrapped = to_published(model)
    assert state["mid_block.mlp.fc1.weight"].shape == (hidden_width, width)
    assert convert_state(state, config=wrapped)[0].config == model.config


def test_one_run_by_hand() -> None:
    """Two steps over two ids, with numbers that can be followed."""
    logits = torch.tensor([[[0.0, 3.0], [2.0, 0.0], [0.0, 1.0]]])
    seen = []

    def read(ids: torch.Tensor, masked: torch.Tensor, guided: bool) -> tuple[torch.Tensor, None]:
        seen.append((ids.tolist(), masked.tolist(), guided))
        return logits, None

    noise = RowNoise([7], 3, 2, torch.device("cpu"))
    filled = fill_ids(read, torch.ones(1, 3, dtype=torch.bool), noise, MaskedSamplingConfig(steps=2, temperature=0.0))
    # After half of the steps arccos(1/2) = 60 of 90 degrees stay hidden: two of three, the least sure ones.
    assert seen[1] == ([[1, 0, 1]], [[False, True, True]], False)
    assert filled.ids.tolist() == [[1, 0, 1]] and filled.passes == 2
    assert torch.allclose(filled.log_probs, logits.log_softmax(-1).gather(-1, filled.ids[..., None])[..., 0])


@pytest.mark.parametrize("size", [0.5, 3.0])
def test_one_number_a_token_draws_as_gumbel_noise_on_every_logit(size: float) -> None:
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0, float("-inf")]).expand(200, 100, 5)
    noise = RowNoise(range(200), 100, 2, torch.device("cpu"))
    expected = (logits[0, 0] / size).softmax(-1)
    uniforms = torch.rand(logits.shape, generator=torch.Generator().manual_seed(0))
    for drawn in (noise.draw(logits, size), noise.draw(logits, size), (logits + size * gumbel(uniforms)).argmax(-1)):
        share = torch.bincount(drawn.flatten(), minlength=5) / drawn.numel()
        torch.testing.assert_close(share, expected, atol=0.012, rtol=0.0)
    again = RowNoise(range(5, 6), 100, 2, torch.device("cpu"))
    first = RowNoise(range(200), 100, 2, torch.device("cpu")).draw(logits, size)
    assert torch.equal(again.draw(logits[:1], size)[0], first[5])
    assert again.keep().shape == (1, 100)


@given(num_tokens=st.integers(1, 300), steps=st.integers(1, 80))
def test_counts_fall_to_none_and_keep_one_to_the_last(num_tokens: int, steps: int) -> None:
    counts = masked_counts(num_tokens, steps)
    assert len(counts) == steps and counts[-1] == 0
    assert all(a > b or a == b == 1 for a, b in itertools.pairwise(counts[:-1]))
    for step, count in enumerate(counts[:-1], start=1):
        assert 1 <= count <= max(1, math.floor(num_tokens * math.acos(step / steps) * 2 / math.pi))


@settings(deadline=None)
@given(share=st.floats(0.0, 0.999), seed=st.integers(0, 99))
def test_masks_have_the_share_of_the_arccosine(share: float, seed: int) -> None:
    order = torch.rand(3, 16, generator=torch.Generator().manual_seed(seed))
    masks = masks_of(torch.full((3,), share), order)
    wanted = max(1, round(16 * math.acos(torch.tensor(share).item()) * 2 / math.pi))
    assert masks.sum(dim=1).tolist() == [wanted] * 3
    for row, mask in zip(order, masks, strict=True):
        assert bool(mask.all()) or float(row[mask].max()) < float(row[~mask].min())


def test_a_row_is_its_seed_and_condition(model: Any) -> None:
    condition = model.encode_condition(conditions(model, 3))
    seeds = [11, 12, 13]
    together = made(model.generate(condition, seeds=seeds))
    for row in range(3):
        alone = made(model.generate(condition[torch.tensor([row])], seeds=[seeds[row]]))
        torch.testing.assert_close(alone[0], together[row], atol=1e-4, rtol=1e-4)
    assert not torch.equal(made(model.generate(condition, seeds=[21, 22, 23])), together)
    assert torch.equal(made(model.generate(condition, seeds=seeds)), together)
    several = model.generate(condition[torch.tensor([0])], num=2, seeds=[11, 99])
    torch.testing.assert_close(made(several)[0], together[0], atol=1e-4, rtol=1e-4)


def test_guidance_in_one_pass_is_guidance_in_two(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    condition = model.encode_condition(conditions(model, 2))
    expected = made(model.generate(condition, seeds=[1, 2], cfg_scale=20.0))
    name = "logits" if isinstance(model, MaskGit) else "states"
    whole = getattr(model, name)

    def in_halves(tokens: torch.Tensor, masked: torch.Tensor, rows: Any) -> torch.Tensor:
        parts = [torch.tensor([index]) for index in range(len(tokens))]
        return torch.cat([whole(tokens[part], masked[part], rows[part]) for part in parts])

    monkeypatch.setattr(model, name, in_halves)
    torch.testing.assert_close(
        made(model.generate(condition, seeds=[1, 2], cfg_scale=20.0)), expected, atol=1e-4, rtol=1e-4
    )
    assert not torch.equal(made(model.generate(condition, seeds=[1, 2], cfg_scale=1.0)), expected)


def test_what_is_hidden_is_not_read(model: Any) -> None:
    condition = model.encode_condition(conditions(model, 2))
    read = model.logits if isinstance(model, MaskGit) else model.states
    content = content_of(model, 2)
    masked = torch.zeros(2, L, dtype=torch.bool)
    masked[:, 3:6] = True
    other = content.clone()
    other[:, 3:6] = content.flip(0)[:, 3:6] + (1 if not model.continuous else 0.5)
    other = other % K if not model.continuous else other
    with torch.no_grad():
        assert torch.equal(read(content, masked, condition), read(other, masked, condition))
        other[:, 0] = content.flip(0)[:, 1]
        assert not torch.equal(read(content, masked, condition), read(other, masked, condition))


def test_training_reaches_every_weight_and_is_of_the_seeds(model: Any) -> None:
    model.train()
    condition = model.encode_condition(conditions(model, 4))
    content, seeds = content_of(model, 4), torch.arange(4) * 7919
    torch.manual_seed(0)
    losses = model(content, condition, sample_seeds=seeds)
    losses["loss"].backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)}
    # Nothing reads what the text would become in the last joint block; published weights have its queries all the same.
    unread = {f"transformer.blocks.1.text_query.{part}" for part in ("weight", "bias")}
    assert without <= unread, without
    model.eval()
    first, second = (float(model(content, condition, sample_seeds=seeds)["loss"].detach()) for _ in range(2))
    assert first == second
    assert first != float(model(content, condition, sample_seeds=seeds + 1)["loss"].detach())


def test_conditions_are_hidden_in_training_only() -> None:
    model = make("bert")
    model.config = MaskGitConfig(**_GIT, class_dropout=0.5, dropout=0.0)
    seen = []
    model.logits = lambda ids, masked, condition: (
        seen.append(condition) or torch.zeros(*ids.shape, K, requires_grad=True)
    )
    labels = torch.ones(2000, dtype=torch.int64)
    for mode in (True, False):
        model.train(mode)
        model(content_of(model, 2000), labels, sample_seeds=torch.arange(2000) * 104729)
    assert 0.45 < float((seen[0] == -1).float().mean()) < 0.55
    assert torch.equal(seen[1], labels)


def test_files_and_published_names(model: Any, tmp_path: Any) -> None:
    model.save_pretrained(tmp_path / "own")
    again = from_pretrained(tmp_path / "own")
    condition = model.encode_condition(conditions(model, 1))
    assert torch.equal(made(again.generate(condition, seeds=4)), made(model.generate(condition, seeds=4)))
    published, wrapped = to_published(model)
    back, state = convert_state(published, config=yaml.safe_load(yaml.safe_dump(wrapped)))
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert recognise({key: tuple(tensor.shape) for key, tensor in published.items()}).family == model.family
    if isinstance(model, MaskGit):
        assert back.config == model.config
    else:  # a text tower is not told there, and of ids no head
        names = ("kind", "width", "depth", "num_heads", "text_dim", "micro_dim", "latent_scale", "codebook_size")
        assert all(getattr(back.config, name) == getattr(model.config, name) for name in names)
    save_published(model, tmp_path / "x.safetensors")
    assert from_pretrained(tmp_path / "x.safetensors").weight_hash() == model.weight_hash()


def test_log_probabilities_are_those_of_each_given_the_others() -> None:
    for kind in ("bert", "maskgen_vq"):
        model = make(kind)
        condition = model.encode_condition(conditions(model, 2))
        ids = content_of(model, 2)
        scores = model.token_log_probs(Tokens(ids=ids, codebook_size=K), condition)
        masked = torch.zeros_like(ids, dtype=torch.bool)
        masked[:, 4] = True
        logits = model.position_logits(ids, masked, condition, 4)
        expected = logits.log_softmax(-1).gather(-1, ids[:, 4:5])[:, 0]
        torch.testing.assert_close(scores[:, 4], expected)
    with pytest.raises(VistokError, match="diffusion"):
        latents = content_of(make("maskgen_kl"), 1)
        make("maskgen_kl").token_log_probs(Tokens(latents=latents), None)


@pytest.mark.parametrize(
    ("decay", "scale", "wanted"),
    [
        ("constant", 3.0, [4.0, 4.0, 4.0]),  # c + 3 (c - u)
        ("linear", 4.5, [1.0, 3.25, 5.5]),  # c + w (c - u), w from 0
        ("power-cosine", 6.9, [1.0, 1.2245, 6.9]),  # u + w (c - u), w from 1, late
        ("constant", 0.0, [1.0, 1.0, 1.0]),
    ],
)
def test_published_guidance(decay: str, scale: float, wanted: list[float]) -> None:
    sampling = published_sampling(scale, decay, steps=8, temperature=1.0)
    got = [sampling.scale_at(progress) for progress in (0.0, 0.5, 1.0)]
    assert got == pytest.approx(wanted, abs=1e-3)


def test_bad_input(model: Any) -> None:
    condition = model.encode_condition(conditions(model, 1))
    with pytest.raises(VistokError, match="all its 9 tokens together"):
        model.generate(condition, length=4)
    with pytest.raises(VistokError, match="in order"):
        model.generate(condition, prefix=Tokens(ids=torch.zeros(1, 2, dtype=torch.int64), codebook_size=K))
    with pytest.raises(VistokError, match="all its 9 tokens"):
        model(content_of(model, 1)[:, :5], condition)
    with pytest.raises(ConfigError, match="steps"):
        model.generate(condition, steps=0)


def test_bad_configurations() -> None:
    for wrong in (
        {"network": "gpt"},
        {"network": "uvit", "depth": 3},
        {"width": 30, "num_heads": 4},
        {"class_dropout": 1.0},
        {"class_names": ("a",)},
        {"codebook_size": 1},
    ):
        with pytest.raises(ConfigError):
            MaskGitConfig(**_GIT | wrong)
