"""Published layouts: recognised, converted on the fly, and written back name for name and value for value."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_models import BASE, KINDS, TINY, condition, make, pictures
from torch import Tensor

from vistok.config import from_dict
from vistok.convert import find_key, recognise, sources
from vistok.convert.key_map import KeyMap, Rule, count
from vistok.errors import CheckpointError, VistokError
from vistok.hub import (
    convert_state,
    create_model,
    empty_model,
    from_pretrained,
    read_state,
    save_published,
    to_published,
)
from vistok.models.base import Tokenizer
from vistok.models.titok import TiTok, TiTokConfig, TransformerSize
from vistok.registry import get_card, model_class

from golden_cases import GoldenCase

GOLDEN = Path(__file__).parent / "golden" / "titok"
CASES = (
    "tiny-vq",
    "tiny-vae",
    "tiny-vq-single",
    "tiny-vq-stage1",
    "tatitok-tiny-vq",
    "tatitok-tiny-vae",
    "maskgit-vqgan-tiny",
)
PUBLISHED_KINDS = ("vq_pixels", "vq_legacy", "vq_text", "gaussian", "maskgit_vqgan")


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> GoldenCase:
    return GoldenCase(GOLDEN / request.param)


def save(state: dict[str, Any], path: Path) -> Path:
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a)


# Official checkpoints.


@pytest.mark.parametrize(("suffix", "configured"), [(".bin", False), (".safetensors", True), (".pt", False)])
def test_an_official_file_is_converted_on_the_fly_and_back(
    case: GoldenCase, suffix: str, configured: bool, tmp_path: Path
) -> None:
    state = case.state()
    path = save(state, tmp_path / f"official{suffix}")
    model = from_pretrained(path, config=case.config if configured else None)
    assert isinstance(model, Tokenizer) and not model.training
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    again, _ = to_published(model)
    assert equal(again, state)


@pytest.mark.parametrize(("wrapper", "suffix"), [("state_dict", ".ckpt"), ("model", ".pth"), ("ema", ".pt")])
def test_a_state_inside_a_training_checkpoint_is_found(wrapper: str, suffix: str, tmp_path: Path) -> None:
    state = GoldenCase(GOLDEN / "tiny-vae").state()
    inside = {f"module.{key}": value for key, value in state.items()}
    path = save({wrapper: inside, "step": 3}, tmp_path / f"training{suffix}")
    assert equal(to_published(from_pretrained(path))[0], state)


def test_the_published_configuration_tells_what_shapes_cannot(tmp_path: Path) -> None:
    case = GoldenCase(GOLDEN / "tiny-vq-single")
    path = save(case.state(), tmp_path / "official.bin")
    plain = from_pretrained(path)
    assert plain.config.l2_norm is False and plain.config.legacy_layout is False and plain.config.head == "pixels"
    vq_model = {"use_l2_norm": True, "commitment_cost": 0.5}
    for config in ({"vq_model": vq_model}, {"model": {"vq_model": vq_model}}):
        told = from_pretrained(path, config=config)
        assert (told.config.l2_norm, told.config.commitment_cost) == (True, 0.5)


def test_a_config_json_beside_the_weights_is_read(tmp_path: Path) -> None:
    """As the published repositories have it: no ``family``, and a ``vq_model`` part."""
    case = GoldenCase(GOLDEN / "tiny-vq-single")
    save_file(case.state(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model": {"vq_model": {"commitment_cost": 0.125}}}')
    assert from_pretrained(tmp_path).config.commitment_cost == 0.125
    (tmp_path / "model.safetensors").unlink()
    torch.save(case.state(), tmp_path / "pytorch_model.bin")
    assert from_pretrained(tmp_path).config.commitment_cost == 0.125


def test_values_are_taken_over_bit_by_bit_in_their_own_type(tmp_path: Path) -> None:
    state = {key: value.half() for key, value in GoldenCase(GOLDEN / "tiny-vae").state().items()}
    model = from_pretrained(save(state, tmp_path / "half.safetensors"))
    assert model.dtype == torch.float16 and equal(to_published(model)[0], state)
    assert from_pretrained(tmp_path / "half.safetensors", dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize(
    "name",
    [
        "titok_s128.imagenet",
        "titok_s128_stage1.imagenet",
        "titok_bl64_vq8k.imagenet",
        "tatitok_bl32_vae.datacomp",
        "maskgit_vqgan.imagenet",
    ],
)
def test_a_published_card_reads_its_own_layout_without_a_configuration(name: str) -> None:
    """Card -> published names and shapes -> configuration gives the card's model again, on the meta device."""
    card = get_card(name)
    cls = model_class(card.family)
    model = empty_model(cls, from_dict(cls.config_class, card.config, where=name))
    published, wrapped = to_published(model)
    own = model.state_dict()
    for config in (None, wrapped):
        again, state = convert_state(published, config=config)
        assert {key: tensor.shape for key, tensor in state.items()} == {key: own[key].shape for key in own}
        assert resolved(again) == resolved(model)


def resolved(model: Tokenizer) -> Any:
    """The configuration with sizes as numbers, and without what its head does not use."""
    config = model.config
    if not isinstance(config, TiTokConfig):
        return config
    config = replace(config, encoder=config.size("encoder"), decoder=config.size("decoder"))
    if config.head != "vqgan":
        config = replace(config, vqgan=BASE.vqgan)
    if config.quantizer == "gaussian":
        config = replace(config, codebook_size=1, l2_norm=False, commitment_cost=0.0)
    return config if config.text_length else replace(config, text_dim=0)


# Ours, written in a published layout.


@pytest.mark.parametrize("kind", PUBLISHED_KINDS)
def test_written_in_the_published_layout_and_read_again(kind: str, tmp_path: Path) -> None:
    model = make(kind)
    path = tmp_path / "sub" / "published.safetensors"
    save_published(model, path)
    assert sorted(file.name for file in path.parent.iterdir()) == ["published.safetensors", "published.yaml"]
    assert "quantizer.codebook" not in load_file(path)
    again = from_pretrained(path)
    assert resolved(again) == resolved(model) and again.weight_hash() == model.weight_hash()
    tokens = model.encode(pictures(2))
    text = condition(model, 2)
    assert again.encode(pictures(2)) == tokens
    assert torch.equal(again.decode(tokens, condition=text), model.decode(tokens, condition=text))


@settings(max_examples=25)
@given(
    width=st.sampled_from([32, 64, 96]),
    heads=st.sampled_from([1, 2, 4]),
    depth=st.integers(1, 3),
    num_tokens=st.integers(1, 9),
    patches=st.tuples(st.sampled_from([4, 8, 16]), st.sampled_from([8, 16])),
    quantizer=st.sampled_from(["vq", "gaussian"]),
    code_dim=st.integers(1, 5),
    flags=st.tuples(st.booleans(), st.booleans()),
    text=st.sampled_from([(0, 768), (3, 5)]),
    cost=st.sampled_from([0.25, 1.0]),
)
def test_any_configuration_of_the_published_kind_is_read_back(
    width: int, heads: int, depth: int, num_tokens: int, patches: Any, quantizer: Any, code_dim: int, flags: Any, text: Any,
    cost: float,
) -> None:  # fmt: skip
    config = TiTokConfig(
        image_size=32,
        patch_size=patches[0],
        decoder_patch_size=patches[1],
        encoder=TransformerSize(width, depth, heads),
        decoder=TransformerSize(2 * width, 1, heads),
        num_tokens=num_tokens,
        quantizer=quantizer,
        codebook_size=17,
        code_dim=code_dim,
        l2_norm=flags[0],
        cluster=flags[1] and quantizer == "vq",
        commitment_cost=cost,
        text_length=text[0],
        text_dim=text[1],
    )
    model = empty_model(TiTok, config)
    published, wrapped = to_published(model)
    again, state = convert_state(published, config=yaml.safe_load(yaml.safe_dump(wrapped)))
    assert resolved(again) == resolved(model) and state.keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantizer": "fsq", "levels": (4, 3, 5, 2)}, "fsq"),
        ({"tail_drop": "uniform"}, "tail_drop"),
        ({"init": "linear"}, "init: linear"),
        ({"legacy_layout": True}, "legacy_layout"),
        ({"head": "vqgan", "vqgan": KINDS["maskgit_vqgan"]}, "legacy_layout"),
    ],
)
def test_what_the_published_layout_cannot_tell_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """Otherwise it would be read back as another model that gives other images."""
    with pytest.raises(VistokError, match=f"published layout.*{message}.*save_pretrained"):
        save_published(TiTok(replace(BASE, **changes)), tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_families_without_a_published_layout_and_wrong_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VistokError, match="no published layout"):
        to_published(create_model("digit_ar_tiny.emoji"))
    with pytest.raises(VistokError, match=r"\.safetensors, got"):
        save_published(make("vq_pixels"), tmp_path / "x.bin")


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.safetensors"
    save_published(make("vq_pixels"), path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def torn(tensors: Any, target: Path, **_: Any) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("vistok.hub.save_file", torn)
    with pytest.raises(OSError, match="no space left"):
        save_published(make("gaussian"), path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_published_file_in_a_folder_of_ours_is_still_read_as_published(tmp_path: Path) -> None:
    model = make("vq_pixels")
    model.save_pretrained(tmp_path)
    save_published(model, tmp_path / "published.safetensors")
    assert from_pretrained(tmp_path / "published.safetensors").weight_hash() == model.weight_hash()
    assert from_pretrained(tmp_path).weight_hash() == model.weight_hash()
    assert from_pretrained(tmp_path / "model.safetensors").weight_hash() == model.weight_hash()


# Wrong layouts.


def test_unknown_layouts_show_some_names_and_what_is_known() -> None:
    with pytest.raises(CheckpointError, match=r"x: 3 tensors of no layout.*start a, b, c.*TiTok"):
        convert_state({name: torch.zeros(2) for name in "cab"}, where="x")


def test_recognising_needs_no_order() -> None:
    assert {source.family for source in sources()} >= {"titok", "maskgit_vqgan", "flextok", "kl_vae", "gigatok"}
    for name in CASES:
        shapes = GoldenCase(GOLDEN / name).shapes
        family = "maskgit_vqgan" if "maskgit" in name else "titok"
        assert recognise(dict(reversed(shapes.items()))).family == family
        assert sum(source.signature <= shapes.keys() for source in sources()) == 1


@pytest.mark.parametrize(
    ("name", "stride"), [("tiny-vae", 5), ("tatitok-tiny-vq", 11), ("tiny-vq", 61), ("maskgit-vqgan-tiny", 41)]
)
def test_any_tensor_missing_or_mis_shaped_is_an_error(name: str, stride: int) -> None:
    """With a tensor gone, or of a wrong shape, loading fails with a report; torch's own errors stay inside."""
    state = GoldenCase(GOLDEN / name).state()
    tables = [key for key in state if "embed" in key or "conv_" in key]  # sizes are read from these
    for key in {*sorted(state)[::stride], *tables[::2]}:
        without = {k: v for k, v in state.items() if k != key}
        for broken in (without, {**state, key: torch.zeros(7, 1, 2)}, {**state, key: torch.zeros(())}):
            with pytest.raises(CheckpointError) as error:
                model, ours = convert_state(broken, where="file")
                model.load_weights(ours, where="file")
            assert str(error.value).startswith("file"), (key, str(error.value))


def test_an_extra_tensor_is_named() -> None:
    state = GoldenCase(GOLDEN / "tiny-vae").state()
    model, ours = convert_state({**state, "encoder.transformer.0.attn.extra": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"1 unexpected: encoder\.transformer\.0\.attn\.extra"):
        model.load_weights(ours)


@pytest.mark.parametrize(
    "config", [{"vq_model": "x"}, {"vq_model": None}, {"vq_model": {"commitment_cost": "x"}}, {}, {"a": [1]}]
)
def test_odd_configurations_are_read_or_refused_clearly(config: dict[str, Any]) -> None:
    state = GoldenCase(GOLDEN / "tiny-vq-single").state()
    try:
        model, _ = convert_state(state, config=config)
        assert model.config.commitment_cost == 0.25
    except CheckpointError as error:
        assert "commitment" in str(config) and "looks like" in str(error)


# Rules.

_RULES = KeyMap([Rule("a.{}.b.{}.*", "x.{}.{}.*"), Rule("c.weight", "d.weight", "conv1x1"), Rule("t", "u", "row")])


@given(first=st.integers(0, 99), second=st.integers(0, 99), rest=st.text("abc.", min_size=1, max_size=6))
def test_names_go_there_and_back(first: int, second: int, rest: str) -> None:
    state = {
        f"a.{first}.b.{second}.{rest}": torch.ones(2),
        "c.weight": torch.ones(2, 3, 1, 1),
        "t": torch.ones(4),
        "z": torch.ones(1),
    }
    ours = _RULES.to_ours(state)
    assert set(ours) == {f"x.{first}.{second}.{rest}", "d.weight", "u", "z"}
    assert (ours["d.weight"].shape, ours["u"].shape) == ((2, 3), (1, 4))
    assert equal(_RULES.to_published(ours), state)
    assert _RULES.name_to_ours("c.weight") == "d.weight" and _RULES.name_to_ours("c.weights") == "c.weights"


def test_counting_and_finding() -> None:
    shapes = {"b.0.x": (), "b.10.x": (), "c.3.x": ()}
    assert (count(shapes, r"b\.(\d+)\."), count(shapes, r"z\.(\d+)\.")) == (11, 0)
    assert find_key({"a": {"b": {"key": 5}}}, "key") == 5
    assert find_key({"a": 1}, "key") is None and find_key(None, "key") is None


def test_read_state_unwraps_only_dicts(tmp_path: Path) -> None:
    tensors = {"model": torch.zeros(2), "ema": torch.ones(1)}  # names that happen to be those of wrappers
    assert read_state(save(tensors, tmp_path / "x.pt")).keys() == tensors.keys()


def test_tiny_is_not_a_published_size(tmp_path: Path) -> None:
    """Its heads are 32 wide and no published ones are: without the configuration they would be read as two of 64."""
    model = TiTok(replace(BASE, encoder="tiny", decoder=TINY))
    save_published(model, tmp_path / "x.safetensors")
    assert from_pretrained(tmp_path / "x.safetensors").config.size("encoder").num_heads == 4
