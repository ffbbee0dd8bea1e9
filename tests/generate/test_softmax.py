"""Generators with one softmax for the next token (GPT, FlexAR): cache, guidance, branches, training, files, in every variant."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter

from vistok.config import from_dict, to_dict
from vistok.convert import recognise
from vistok.errors import ConfigError, VistokError
from vistok.generate.autoregressive import Rollout
from vistok.generate.flexar import FlexAR, FlexARConfig, FlexARSampling, TextConfig
from vistok.generate.flexar_blocks import AttentionConfig, NormConfig
from vistok.generate.gpt import Gpt, GptConfig
from vistok.generate.rar import Rar, RarConfig
from vistok.generate.sampling import SamplingConfig
from vistok.generate.softmax import SoftmaxGenerator
from vistok.generate.text import TextCondition
from vistok.hub import convert_state, from_pretrained, save_published, to_published
from vistok.tokens import Tokens

K, L, CLASSES, WIDTH, WORDS = 24, 9, 5, 32, 12
_GPT = {
    "codebook_size": K,
    "num_tokens": L,
    "num_classes": CLASSES,
    "width": WIDTH,
    "depth": 3,
    "num_heads": 2,
    "hidden_width": 48,
}
_FLEX = {"codebook_size": K, "num_tokens": L, "width": WIDTH, "depth": 2, "attention": AttentionConfig(num_heads=2)}
_RMS = NormConfig("rms", 1e-6, True, False)
_PLAIN = NormConfig("layer", 1e-5, False, False)
_BIASED = AttentionConfig(num_heads=4, qkv_bias=True, proj_bias=True, qk_norm=_RMS)
KINDS: dict[str, Any] = {
    "gpt": GptConfig(**_GPT),
    "gpt_rotary": GptConfig(**_GPT, positions="rotary_2d"),
    "gpt_modulated": GptConfig(**_GPT, modulated=True, qk_norm=True),
    "rar": RarConfig(**_GPT),
    "rar_spare": RarConfig(**_GPT, spare_positions=5, spare_slots=91, anneal_start=0.2, anneal_end=0.4),
    "flexar_class": FlexARConfig(**_FLEX, num_classes=CLASSES, mlp="swiglu", hidden_width=40),
    "flexar_text": FlexARConfig(**_FLEX, text=TextConfig(width=WORDS, length=6), reading=AttentionConfig(num_heads=4)),
    "flexar_text_all": FlexARConfig(
        **_FLEX | {"attention": _BIASED},
        text=TextConfig(width=WORDS, length=6, activation="silu", bias=True),
        reading=AttentionConfig(num_heads=2, qk_norm=_PLAIN),
        norm=_RMS,
        last_norm=False,
        mlp_bias=True,
        positions="sincos",
        head_norm=True,
        head_bias=True,
    ),
}


CLASSES_OF = {GptConfig: Gpt, RarConfig: Rar, FlexARConfig: FlexAR}


def make(kind: str, seed: int = 0) -> SoftmaxGenerator:
    """A tiny one with weights that are all random, so that nothing that starts at zero hides."""
    torch.manual_seed(seed)
    config = KINDS[kind]
    model = CLASSES_OF[type(config)](config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def conditions(model: SoftmaxGenerator, rows: int, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    if not (isinstance(model, FlexAR) and model.text is not None):
        return torch.randint(0, CLASSES, (rows,), generator=generator)
    hidden = torch.randn(rows, 5, WORDS, generator=generator)
    mask = torch.arange(5) < torch.randint(1, 6, (rows, 1), generator=generator)
    return TextCondition(hidden, mask, torch.randn(1, 2, WORDS, generator=generator), torch.tensor([[True, False]]))


def ids_of(rows: int, length: int = L, seed: int = 0) -> torch.Tensor:
    return torch.randint(K, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("static", [False, True])
@settings(deadline=None, max_examples=8)
@given(chunks=st.lists(st.integers(1, 4), min_size=1, max_size=4), rows=st.integers(1, 3), seed=st.integers(0, 99))
def test_cache_equals_no_cache(kind, static, chunks, rows, seed):
    """Read in chunks of any size, by slices or under masks, the states are those of one pass without a cache."""
    model = make(kind, seed)
    condition = model.encode_condition(conditions(model, rows, seed))
    ids = ids_of(rows, L, seed)
    with torch.no_grad():
        full = model.states(ids, condition)
        cache = model.new_cache(rows, static=static)
        states, start = [model.read_condition(condition, cache)[:, None]], 0
        for size in chunks:
            part = ids[:, start : min(start + size, L - 1)]
            if part.shape[1]:
                states.append(model.read_tokens(part, start, cache))
            start += part.shape[1]
    got = torch.cat(states, dim=1)
    torch.testing.assert_close(got, full[:, : got.shape[1]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", sorted(KINDS))
@settings(deadline=None, max_examples=8)
@given(
    rows=st.lists(st.integers(0, 2), min_size=1, max_size=5),
    cut=st.integers(1, L - 1),
    scale=st.sampled_from([1.0, 2.0]),
)
def test_branches_and_prefixes_go_on_as_if_alone(kind, rows, cut, scale):
    """Rows that were reordered and branched on the way, and rows that begin with a prefix, are those drawn in one go."""
    model = make(kind)
    condition = conditions(model, 3)
    whole = model.generate(condition, seeds=[1, 2, 3], cfg_scale=scale, return_log_probs=True)
    rollout = model.start(condition, sampling=model.sampling.updated(cfg_scale=scale))
    noise = model.token_noise([1, 2, 3])
    rollout.extend(cut, noise)
    picked = torch.tensor(rows)
    rollout.select(picked)
    rollout.extend(L - cut, noise[picked])
    assert torch.equal(rollout.ids, whole.tokens.ids[picked])
    again = model.generate(
        condition, prefix=whole.tokens.truncate(cut), seeds=[1, 2, 3], cfg_scale=scale, return_log_probs=True
    )
    assert again.tokens == whole.tokens
    torch.testing.assert_close(again.log_probs, whole.log_probs, atol=1e-5, rtol=1e-5)


def test_a_row_is_the_same_in_any_batch(kind):
    model = make(kind)
    condition = model.encode_condition(conditions(model, 6))
    everything = model.generate(condition, seeds=list(range(6)), cfg_scale=1.5, top_p=0.9).tokens.ids
    for rows in ([4], [5, 0, 3], [2, 1]):
        part = model.generate(condition[torch.tensor(rows)], seeds=rows, cfg_scale=1.5, top_p=0.9).tokens.ids
        assert torch.equal(part, everything[rows])
    assert torch.equal(everything, model.generate(condition, seeds=list(range(6)), cfg_scale=1.5, top_p=0.9).tokens.ids)


def test_guidance_in_one_batch_is_two_passes(kind):
    """Greedy tokens are the best of null + scale (conditional - null), computed apart and without a cache."""
    model = make(kind)
    condition = model.encode_condition(conditions(model, 2))
    result = model.generate(condition, temperature=0.0, cfg_scale=2.5, return_log_probs=True)
    ids = result.tokens.ids
    with torch.no_grad():
        own, null = (model.logits(model.states(ids, part)) for part in (condition, model.null_condition(condition)))
    guided = null + 2.5 * (own - null)
    assert torch.equal(guided.argmax(-1), ids)
    expected = guided.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    torch.testing.assert_close(result.draw_log_probs, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(result.log_probs, model.token_log_probs(result.tokens, condition), atol=1e-5, rtol=1e-5)


def test_one_program_serves_every_position(kind):
    """A compiled step is compiled once, for all positions and for rollouts after the first; the tokens stay the same."""
    model = make(kind)
    condition = model.encode_condition(conditions(model, 2))
    plain = model.generate(condition, seeds=4, cfg_scale=2.0).tokens
    counter = CompileCounter()
    model.compile_steps(backend=counter)
    assert model.generate(condition, seeds=4, cfg_scale=2.0).tokens == plain
    assert model.generate(condition, seeds=4, cfg_scale=2.0).tokens == plain
    model.generate(condition[torch.tensor([0])], 2, seeds=4, cfg_scale=2.0)  # as many rows, of one condition
    assert counter.frame_count == 1 and model.new_cache(1).static


def test_more_sizes_than_programs_are_no_error(kind, caplog):
    model, plain = make(kind), make(kind)
    counter = CompileCounter()
    model.compile_steps(backend=counter)
    with torch._dynamo.config.patch(cache_size_limit=2):
        for rows in (1, 2, 3, 4, 4, 2):
            condition = model.encode_condition(conditions(model, rows))
            options = {"seeds": 4, "length": 3}
            assert model.generate(condition, **options).tokens == plain.generate(condition, **options).tokens
    assert counter.frame_count == 2
    assert [record.args[0] for record in caplog.records if record.name.startswith("vistok")] == [3, 4]


def test_compiled_steps_find_the_cache_where_it_was(kind):
    """What a graph was recorded with stays in its place, call after call, also where rows are branched."""
    model, places = make(kind), set()

    def watching(graph: torch.fx.GraphModule, _: Any) -> Any:
        def run(*inputs: torch.Tensor) -> Any:
            pinned = [tensor for tensor in inputs if hasattr(tensor, "_dynamo_static_input_type")]
            places.add(tuple(tensor.data_ptr() for tensor in pinned if not isinstance(tensor, torch.nn.Parameter)))
            return graph(*inputs)

        return run

    model.compile_steps(backend=watching)
    condition = model.encode_condition(conditions(model, 4))
    half = condition[torch.tensor([0, 2])]
    kept = [model.generate(condition, seeds=4, cfg_scale=2.0)]
    kept += [model.generate(half, 2, seeds=4, cfg_scale=2.0) for _ in range(3)]
    assert len(places) == 1 and len(next(iter(places))) >= 3
    assert all(result.tokens == kept[1].tokens for result in kept[1:])
    rollouts = [model.start(condition) for _ in range(2)]
    for rollout in (*rollouts, *rollouts):
        rollout.extend(2, model.token_noise([1, 2, 3, 4]))
    assert len(places) == 3


def test_compiled_rollouts_may_take_turns(kind):
    """A backend that gives its results in the same memory every time, as a replayed CUDA graph does."""
    model, plain = make(kind), make(kind)
    condition = model.encode_condition(conditions(model, 2))

    def replayed(graph: torch.fx.GraphModule, _: Any) -> Any:
        kept: list[torch.Tensor] = []

        def run(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            made = graph(*inputs)
            kept.extend(torch.empty_like(tensor) for tensor in made[len(kept) :])
            return tuple(place.copy_(tensor) for place, tensor in zip(kept, made, strict=True))

        return run

    model.compile_steps(backend=replayed)
    noise = model.token_noise([3, 5])
    rollouts = [each.start(condition) for each in (model, plain)]
    others = []
    for rollout in rollouts:
        rollout.extend(2, noise)
        rollout.draw_next(noise[:, 2:3])  # reads the states of the next token, and keeps them
        others.append(rollout.copy())
    for pair, drawn in ((others, noise.flip(0)), (rollouts, noise)):
        for rollout in pair:
            rollout.extend(3, drawn)
    assert torch.equal(rollouts[0].ids, rollouts[1].ids) and torch.equal(others[0].ids, others[1].ids)


def test_a_copy_is_not_bound_to_the_original(kind):
    model = make(kind)
    model.compile_steps(backend="eager")
    copied = copy.deepcopy(model)
    assert model.compiled and not copied.compiled
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    condition = conditions(model, 2)
    assert copied.generate(condition, seeds=1).tokens == make(kind).generate(condition, seeds=1).tokens


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_cache_may_be_smaller_than_the_model(kind, dtype):
    model = make(kind)
    condition, ids = model.encode_condition(conditions(model, 2)), ids_of(2)
    states = {}
    for own in (torch.float32, dtype):
        cache = model.new_cache(2, dtype=own)
        model.read_condition(condition, cache)
        states[own] = model.read_tokens(ids[:, :-1], 0, cache)
        assert cache.keys.dtype == own and states[own].dtype == torch.float32
    torch.testing.assert_close(states[dtype], states[torch.float32], atol=0.1, rtol=0.1)


def test_bf16_generates(kind):
    model = make(kind).to(torch.bfloat16)
    tokens = model.generate(conditions(model, 2), 2, seeds=0, cfg_scale=2.0).tokens
    assert tokens.ids.shape == (4, L) and int(tokens.ids.max()) < K


def test_fan_out_greedy_and_drawn(kind):
    """The last position branches; the rows before it are shared, and the log-probabilities are those of the model."""
    model = make(kind)
    condition = conditions(model, 2)
    rollout = model.start(condition, sampling=SamplingConfig(temperature=0.0))
    rollout.extend(3, model.token_noise([0, 1]))
    best = rollout.ids.clone()
    rollout.fan_out(4, torch.zeros(2, 4, 1))
    assert torch.equal(rollout.ids[:, :3], best.repeat_interleave(4, dim=0))
    last, scores = rollout.ids[:, 3].view(2, 4), rollout.draw_log_probs[:, 3].view(2, 4)
    assert all(len(set(row.tolist())) == 4 for row in last) and bool((scores.diff(dim=1) <= 0).all())
    picked = model.encode_condition(condition)[torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])]
    torch.testing.assert_close(rollout.log_probs, model.token_log_probs(rollout.tokens(), picked), atol=1e-5, rtol=1e-5)
    drawn = model.start(condition, sampling=SamplingConfig(top_k=6))
    noise = torch.rand(2, 6, 1, generator=torch.Generator().manual_seed(0))
    drawn.fan_out(6, noise, replacement=False)
    assert all(len(set(row.tolist())) == 6 for row in drawn.ids.view(2, 6))
    drawn.extend(2, model.token_noise(range(12)))
    assert drawn.ids.shape == (12, 3)
    with pytest.raises(VistokError, match="fewer than the 7"):
        model.start(condition, sampling=SamplingConfig(top_k=6)).fan_out(7, torch.rand(2, 7, 1), replacement=False)


def test_loss_is_the_mean_negative_log_likelihood(kind):
    model = make(kind)
    condition = model.encode_condition(conditions(model, 3))
    tokens = Tokens(ids=ids_of(3), codebook_size=K).truncate([9, 1, 5])
    out = model(tokens.ids, condition, lengths=tokens.lengths)
    expected = -model.log_prob(tokens, condition).sum() / tokens.lengths.sum()
    torch.testing.assert_close(out["loss"], expected)
    assert not out["nll_per_token"].requires_grad


def test_gradients_reach_all_parameters(kind):
    model = make(kind).train()
    rows = 64
    model(ids_of(rows), model.encode_condition(conditions(model, rows)))["loss"].backward()
    unread = {"pos_embed"} if kind.startswith("gpt") else set()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []
    if unread and model.config.positions == "learned":  # published tables have one position more than is ever read
        assert not model.pos_embed.grad[-1].any() and model.pos_embed.grad[-2].any()


def test_hidden_conditions_are_a_function_of_the_sample_seed(kind):
    model = make(kind).train()
    model.config = type(model.config)(**{**vars(model.config), "class_dropout": 0.5})
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    condition, ids, seeds = model.encode_condition(conditions(model, 8)), ids_of(8), torch.arange(8) * 7919
    with torch.no_grad():
        losses = [float(model(ids, condition, sample_seeds=seeds + shift)["loss"]) for shift in (0, 0, 1, 2)]
        shown = float(model.eval()(ids, condition, sample_seeds=seeds)["loss"])
        null = float(model(ids, model.null_condition(condition))["loss"])
    assert losses[0] == losses[1] and len({*losses, shown, null}) == 5


def test_gradient_checkpointing_changes_nothing(kind):
    model = make(kind).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    condition, grads = model.encode_condition(conditions(model, 4)), []
    for enabled in (False, True):
        model.set_gradient_checkpointing(enabled)
        model.zero_grad()
        model(ids_of(4), condition, sample_seeds=torch.arange(4))["loss"].backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters()})
    torch.testing.assert_close(*grads)


def test_save_and_load(kind, tmp_path):
    model = make(kind)
    model.save_pretrained(tmp_path)
    loaded = from_pretrained(tmp_path)
    assert loaded.config == model.config and loaded.weight_hash() == model.weight_hash()
    condition = conditions(model, 2)
    assert loaded.generate(condition, seeds=0).tokens == model.generate(condition, seeds=0).tokens


def test_published_layout_both_ways(kind, tmp_path):
    model = make(kind)
    published, wrapped = to_published(model)
    again, state = convert_state(published, config=yaml.safe_load(yaml.safe_dump(wrapped)))
    assert again.config == model.config
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert recognise({key: tuple(tensor.shape) for key, tensor in published.items()}).family == model.family
    save_published(model, tmp_path / "x.safetensors")
    assert from_pretrained(tmp_path / "x.safetensors").weight_hash() == model.weight_hash()


def test_config_from_plain_data(kind):
    config = KINDS[kind]
    assert from_dict(type(config), to_dict(config)) == config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"condition": 5}, "classes 0 to 4"),
        ({"condition": 0, "length": L + 1}, f"1 to {L}"),
        ({"condition": 0, "topk": 2}, "top_k"),
        ({"condition": 0, "prefix": Tokens(ids=torch.zeros(2, 3).long(), codebook_size=K)}, "one row for each of 1"),
        ({"condition": 0, "prefix": Tokens(ids=torch.zeros(1, 3).long(), codebook_size=7)}, "codebook"),
    ],
)
@pytest.mark.parametrize("kind", ["gpt", "flexar_class"])
def test_bad_input(kind, arguments, message):
    with pytest.raises(VistokError, match=message):
        make(kind).generate(**arguments)


def test_rollouts_count_what_they_read():
    model, read = make("gpt"), []
    model.blocks[0].register_forward_hook(lambda _, args, __: read.append(args[0].shape[0] * args[0].shape[1]))
    result = model.generate([0, 1], 3, seeds=0, cfg_scale=2.0, length=4)
    assert result.token_forwards == sum(read) == 2 * (2 + 6 * 3)


@pytest.mark.parametrize(
    ("make_config", "message"),
    [
        (lambda: GptConfig(width=30), "multiple"),
        (lambda: GptConfig(num_tokens=8, positions="rotary_2d"), "square"),
        (lambda: GptConfig(class_names=("a",)), "class_names"),
        (lambda: GptConfig(codebook_size=1), "codebook_size"),
        (lambda: FlexARConfig(num_classes=3, text=TextConfig()), "classes or captions"),
        (lambda: FlexARConfig(width=50), "multiple"),
        (lambda: FlexARConfig(class_dropout=1.0), "class_dropout"),
        (lambda: NormConfig("rms"), "no bias"),
        (lambda: AttentionConfig(num_heads=0), "num_heads"),
    ],
)
def test_bad_configurations(make_config, message):
    with pytest.raises(ConfigError, match=message):
        make_config()


def test_shipped_guidance_has_class_0_from_the_second_token_on():
    model = make("flexar_class")
    labels = model.encode_condition([3, 1])
    sampling = FlexARSampling(temperature=0.0, cfg_scale=3.0, shipped_null=True)
    rollout = Rollout(model, labels, sampling)
    rollout.extend(L, model.token_noise([0, 1]))
    with torch.no_grad():
        own, none, first = (
            model.logits(model.states(rollout.ids, part))
            for part in (labels, model.null_condition(labels), torch.zeros_like(labels))
        )
    null = torch.cat([none[:, :1], first[:, 1:]], dim=1)
    assert torch.equal((null + 3.0 * (own - null)).argmax(-1), rollout.ids)
    assert not torch.equal(rollout.ids, model.generate(labels, temperature=0.0, cfg_scale=3.0).tokens.ids)
