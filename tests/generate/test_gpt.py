"""What only ``Gpt`` has: published initialisation, guidance by position, the probe's feature, names."""

from __future__ import annotations

import pytest
import torch

from vistok.config import embedded_config, from_dict, load_config
from vistok.convert import recognise
from vistok.errors import PublishedConfigError, VistokError
from vistok.generate.gpt import Gpt, GptConfig, default_hidden_width
from vistok.generate.sampling import SamplingConfig
from vistok.hub import empty_model, to_published
from vistok.layers.positions import rotary_2d, rotate_pairs
from vistok.registry import get_card, list_models, model_class
from vistok.tokens import Tokens
from vistok.training import TrainConfig

TINY = {"codebook_size": 24, "num_tokens": 9, "num_classes": 5, "width": 32, "depth": 3, "num_heads": 2}


def make(**changes) -> Gpt:
    torch.manual_seed(0)
    return Gpt(GptConfig(**{**TINY, "init": "local", **changes})).eval()


def test_published_initialisation():
    model = make(init="published", modulated=True, codebook_size=500, width=64)
    assert (
        not model.head.weight.any() and not model.modulation.weight.any() and not model.blocks[0].modulation.bias.any()
    )
    for parameter in (model.token_embed.weight, model.pos_embed, model.blocks[1].mlp.down.weight):
        assert abs(float(parameter.detach().std()) - 0.02) < 0.002
    ids = torch.zeros(2, 9).long()
    torch.testing.assert_close(model(ids)["loss"], torch.tensor(500.0).log())


def test_the_first_token_has_the_full_scale_and_the_last_is_the_end():
    model = make()
    assert [model.progress(position, 9) for position in (0, 4, 8)] == [0.0, 0.5, 1.0]
    for schedule in ("linear", "linear_down", "triangular"):
        sampling = SamplingConfig(cfg_scale=3.0, cfg_schedule=schedule)
        assert model.sampling_at(sampling, 0).cfg_scale == 3.0
    window = SamplingConfig(cfg_scale=3.0, cfg_start=0.18)
    assert [model.sampling_at(window, position).cfg_scale for position in (0, 1, 2, 8)] == [3.0, 1.0, 3.0, 3.0]
    assert model.sampling_at(SamplingConfig(cfg_scale=3.0, cfg_schedule="linear"), 8).cfg_scale == 3.0


def test_a_schedule_may_run_its_course_in_fewer_tokens():
    """By default a row's first tokens do not depend on how many there will be."""
    model, options = make(), {"seeds": 1, "cfg_scale": 6.0, "cfg_schedule": "linear"}
    whole = model.generate([1, 2], **options).tokens.ids
    assert torch.equal(model.generate([1, 2], length=4, **options).tokens.ids, whole[:, :4])
    own = SamplingConfig(cfg_scale=3.0, cfg_schedule="linear", cfg_tokens=5)
    assert [model.sampling_at(own, position).cfg_scale for position in (0, 1, 2, 4, 8)] == [3.0, 1.5, 2.0, 3.0, 3.0]
    assert not torch.equal(model.generate([1, 2], length=4, cfg_tokens=4, **options).tokens.ids, whole[:, :4])


def test_features_are_the_states_of_the_middle_under_no_class():
    model, states = make(), []
    tokens = Tokens(ids=torch.arange(18).view(2, 9), codebook_size=24)
    hook = model.blocks[0].register_forward_hook(lambda _, __, out: states.append(out))
    with torch.no_grad():
        model.states(tokens.ids, torch.tensor([-1, -1]))
    hook.remove()
    torch.testing.assert_close(model.features(tokens, pool=False), states[0])  # 3 // 2 blocks
    torch.testing.assert_close(model.features(tokens), states[0].mean(dim=1))


def test_rotations_tell_how_far_apart_cells_are_in_both_directions():
    table = rotary_2d(3, 4, 8)
    query, key = torch.randn(8), torch.randn(8)
    turned = [[rotate_pairs(x[None], table[cell][None])[0] for cell in range(12)] for x in (query, key)]

    def product(one: int, other: int) -> float:
        return float(turned[0][one] @ turned[1][other])

    assert abs(product(0, 5) - product(6, 11)) < 1e-5 and abs(product(0, 1) - product(0, 4)) > 1e-4
    torch.testing.assert_close(rotate_pairs(query[None], table[:1])[0], query)
    with pytest.raises(ValueError, match="multiple of four"):
        rotary_2d(2, 2, 6)


def test_on_a_grid_the_class_has_no_query_and_no_key():
    model = make(positions="rotary_2d")
    assert not model.rotations[0].any() and torch.equal(model.rotations[1:], rotary_2d(3, 3, 16))
    assert "rotations" not in model.state_dict()


def test_class_names():
    named = make(class_names=("cat", "dog", "bird", "fish", "bee"))
    assert named.generate("dog", seeds=1).tokens == named.generate(1, seeds=1).tokens
    with pytest.raises(VistokError, match="did you mean bird"):
        named.generate("birb")


def test_a_product_codebook_is_one_softmax():
    model = make(codebook_size=(4, 3, 2))
    tokens = model.generate(0, seeds=0).tokens
    assert tokens.codebook_size == (4, 3, 2) and model.head.out_features == 24


def test_guidance_wants_a_model_trained_for_it():
    for changes in ({"class_dropout": 0.0}, {"num_classes": 0}):
        with pytest.raises(VistokError, match="not trained for guidance"):
            make(**changes).generate(None, cfg_scale=2.0)


def test_it_learns():
    """Rows with a rule: each class has its own first token, and every token is the one before plus three."""
    model = make(num_classes=4, class_dropout=0.05, dropout=0.0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    labels = torch.arange(32) % 4
    ids = (labels[:, None] * 5 + 3 * torch.arange(9)) % 24
    for _ in range(60):
        loss = model(ids, labels)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.6
    assert torch.equal(model.eval().generate([0, 1, 2, 3], temperature=0).tokens.ids, ids[:4])


@pytest.mark.parametrize("name", list_models("gpt_*", kind="generator") + list_models("flexar_*", kind="generator"))
def test_cards_are_whole(name):
    card = get_card(name)
    config = from_dict(model_class(card.family).config_class, {"sampling": dict(card.sampling), **card.config})
    model = empty_model(model_class(card.family), config)
    assert model.sampling.guided == bool(card.sampling) and card.tokenizer in list_models(kind="tokenizer")


@pytest.mark.parametrize(
    "path",
    ["gpt/gpt_b_bl_256", "gpt/gpt_xxl_xlxxl_256", "gpt/gpt_b_bl_2d_256", "gpt/tiny", "flexar/tiny", "flexar/flexar_1b"],
)
def test_recipes_are_read(path):
    config = load_config(TrainConfig, embedded_config(f"{path}.yaml"))
    assert config.task == "generator" and get_card(config.model["name"]).kind == "generator"


def test_published_sizes():
    assert [default_hidden_width(width) for width in (768, 1024, 1280, 1536)] == [2048, 2816, 3584, 4096]
    model = empty_model(Gpt, GptConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == 111_085_824


def test_shared_keys_of_llamagen_are_refused():
    shapes = {name: tuple(tensor.shape) for name, tensor in to_published(make())[0].items()}
    with pytest.raises(PublishedConfigError, match="n_kv_head"):
        recognise(shapes).read_config(shapes, {"n_head": 2, "n_kv_head": 1})
