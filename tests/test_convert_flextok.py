"""FlexTok's published layout: names, configuration as data, metadata inside the file, and what is refused."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vistok.convert import recognise, sources
from vistok.convert.flextok import FLEXTOK
from vistok.convert.kl_vae import KL_VAE
from vistok.errors import CheckpointError, ConfigError, VistokError
from vistok.hub import convert_state, empty_model, from_pretrained, save_published, to_published
from vistok.layers.kl_autoencoder import KlAutoencoderConfig
from vistok.models.flextok import FlexTok
from vistok.models.flextok_config import FlexTokConfig, RegisterTransformerSize
from vistok.models.kl_vae import KlVae, KlVaeConfig
from vistok.registry import get_card

from golden_cases import GoldenCase

GOLDEN = Path(__file__).parent / "golden" / "flextok"
SIZE = RegisterTransformerSize(width=64, depth=1, head_dim=32)
VAE = KlAutoencoderConfig(latent_channels=4, block_channels=(32, 32), layers_per_block=1)
CONFIG = FlexTokConfig(
    vae=VAE, grid_size=(2, 2), num_tokens=6, levels=(4, 3), encoder=SIZE, decoder=SIZE, intermediate_layers=(0,)
)


@pytest.fixture(params=["tiny_a", "tiny_b"])
def case(request: pytest.FixtureRequest) -> GoldenCase:
    return GoldenCase(GOLDEN / request.param)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a)


def literals(tree: dict[str, Any]) -> dict[str, str]:
    return {key: value if isinstance(value, str) else repr(value) for key, value in tree.items()}


@pytest.mark.parametrize("told", ["beside", "inside", "given", "nested"])
def test_an_official_file_is_converted_and_back(case: GoldenCase, told: str, tmp_path: Path) -> None:
    """The configuration is found in config.json, in the file's metadata, or where the caller puts it."""
    state, path = case.state(), tmp_path / "model.safetensors"
    save_file(state, path, metadata=literals(case.config) if told == "inside" else {"format": "pt"})
    if told in ("beside", "nested"):
        tree = case.config if told == "beside" else {"model": case.config, "other": 1}
        (tmp_path / "config.json").write_text(json.dumps(tree))
    model = from_pretrained(path, config=case.config if told == "given" else None)
    assert isinstance(model, FlexTok) and not model.training
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    again, tree = to_published(model)
    assert equal(again, state)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert model.config == FLEXTOK.read_config(shapes, case.config) == FLEXTOK.read_config(shapes, tree)
    noise = case.config["flow_matching_noise_module"]
    assert (model.config.logit_normal, model.config.mode_scale) == (noise["ln"], noise["mode_scale"])
    assert model.config.scaling_factor == case.config["vae"]["scaling_factor"] and not model.config.sample_posterior
    modules = case.config["decoder"]["module_dict"]
    assert model.config.max_timestep == modules["dec_time_embedder"]["max_timestep"]
    assert list(model.config.intermediate_layers) == modules["dec_transformer"]["intermediate_layers"]
    assert model.config.nested_dropout == modules["dec_nested_dropout"]["size_sampling_mode"]


def test_our_tree_is_the_published_one(case: GoldenCase) -> None:
    ours = FLEXTOK.wrap_config(FLEXTOK.read_config(case.shapes, case.config))
    wanted = copy.deepcopy(case.config)
    for side, trunk in (("encoder", "enc_transformer"), ("decoder", "dec_transformer")):
        settings = wanted[side]["module_dict"][trunk]
        if settings["head_dim"] == 64:  # the class's default, which published trees leave out
            del settings["head_dim"]
    assert ours == wanted
    assert list(ours["decoder"]["module_dict"]) == list(wanted["decoder"]["module_dict"]), "modules run in order"


def test_without_a_configuration_it_is_what_all_published_ones_have(case: GoldenCase) -> None:
    if case.config["regularizer"]["levels"] == [8, 8, 8, 5, 5, 5]:
        config = FLEXTOK.read_config(case.shapes)
        told = FLEXTOK.read_config(case.shapes, case.config)
        known = ("grid_size", "patch_size", "num_tokens", "levels", "vae", "repa_dim", "repa_hidden")
        assert all(getattr(config, key) == getattr(told, key) for key in known)
        assert config.encoder == told.encoder and config.max_timestep == 1000.0
    else:
        with pytest.raises(ConfigError, match=r"3 numbers.*give the published configuration"):
            FLEXTOK.read_config(case.shapes)


def test_written_in_the_published_layout_and_read_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = FlexTok(replace(CONFIG, repa_dim=5, max_timestep=1.0)).eval()
    path = tmp_path / "x.safetensors"
    save_published(model, path)
    with safe_open(path, framework="pt") as file:
        assert "MinRFPipeline" in file.metadata()["pipeline"]
    path.with_suffix(".yaml").unlink()  # the metadata is enough
    again = from_pretrained(path)
    assert again.config == replace(model.config, repa_hidden=128) and again.weight_hash() == model.weight_hash()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"causal": False, "modulation_kinds": 1, "intermediate_layers": ()},
        {"logit_normal": True, "stratified": True, "mode_scale": 0.0, "sample_posterior": False},
        {"nested_dropout": "uniform_pow2", "null_probability": 0.1, "drop_quant_probability": 0.5},
        {"grid_size": (2, 3), "patch_size": 1, "scaling_factor": 0.3},
        {"vae": replace(VAE, norm_groups=8)},
        {"time_features": 64, "max_timestep": 10.0, "encoder": RegisterTransformerSize(64, 3, 16)},
    ],
)
def test_any_configuration_of_the_published_kind_is_read_back(changes: dict[str, Any]) -> None:
    model = empty_model(FlexTok, replace(CONFIG, **changes))
    published, tree = to_published(model)
    for told in (tree, literals(tree), {"cfg": tree}):
        again, state = convert_state(published, config=told)
        assert again.config == model.config and state.keys() == model.state_dict().keys()


def test_a_scaling_factor_of_the_autoencoder_is_told() -> None:
    model = empty_model(FlexTok, replace(CONFIG, vae=replace(VAE, scaling_factor=0.7)))
    published, tree = to_published(model)
    assert convert_state(published, config=tree)[0].config.scale == model.config.scale == 0.7


@pytest.mark.parametrize("changes", [{"vae": "none"}, {"nested_dropout": "none"}])
def test_what_the_published_layout_cannot_tell_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(VistokError, match=r"published layout.*save_pretrained"):
        to_published(empty_model(FlexTok, replace(CONFIG, **changes)))


def _set(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(tree: dict[str, Any]) -> None:
        for key in path[:-1]:
            tree = tree[key]
        tree[path[-1]] = value

    return change


_ENC, _DEC = ("encoder", "module_dict"), ("decoder", "module_dict")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("pipeline", "_target_", value="os.system"), r"class 'os.system' at pipeline.*never built"),
        (_set(*_ENC, "enc_to_latents", "_target_", value="evil.Head"), "evil.Head"),
        (_set(*_ENC, "enc_channels_to_last", "per_sample_op", "_target_", value="subprocess.run"), "subprocess.run"),
        (_set(*_ENC, "enc_to_latents", "_target_", value="flextok.x.LinearLayer"), "knows it as LinearHead"),
        (_set(*_ENC, "enc_extra", value={"_target_": "a.LinearHead"}), "module enc_extra"),
        (_set(*_ENC, "enc_to_latents", "use_mup_readout", value=True), "use_mup_readout: True"),
        (_set(*_ENC, "enc_seq_packer", "mask_mode", value="causal"), "mask_mode: 'causal' at enc_seq_packer"),
        (_set(*_DEC, "dec_seq_packer", "mask_mode", value="causal_last"), "dec_seq_packer"),
        (_set(*_DEC, "dec_registers_posemb_module", "posemb_type", value="sincos"), "posemb_type"),
        (_set(*_DEC, "dec_nested_dropout", "size_sampling_mode", value="exp"), "size_sampling_mode"),
        (_set("regularizer", "levels", value=[8]), "levels"),
        (_set("regularizer", value=[1]), "wants keys and values"),
    ],
)
def test_unknown_classes_and_settings_are_refused_and_nothing_is_built(
    change: Callable[[dict[str, Any]], None], words: str
) -> None:
    case = GoldenCase(GOLDEN / "tiny_a")
    tree = copy.deepcopy(case.config)
    change(tree)
    state = {name: torch.empty(shape, device="meta") for name, shape in case.shapes.items()}
    for told in (tree, literals(tree)):
        with pytest.raises(ConfigError, match=words):
            convert_state(state, config=told, where="file")


def test_metadata_that_is_no_literal_is_refused() -> None:
    case = GoldenCase(GOLDEN / "tiny_a")
    told = literals(case.config) | {"encoder": "__import__('os').system('true')"}
    with pytest.raises(ConfigError, match="encoder of FlexTok's configuration is no literal"):
        FLEXTOK.read_config(case.shapes, told)


def test_unknown_training_heads_are_left_out_only_when_asked(tmp_path: Path) -> None:
    case = GoldenCase(GOLDEN / "tiny_a")
    state = case.state() | {"decoder.module_dict.dec_repa_head.layers.0.weight": torch.zeros(2, 2)}
    tree = copy.deepcopy(case.config)
    tree["decoder"]["module_dict"]["dec_repa_head"] = {"_target_": "flextok.some.NewHead"}
    save_file(state, tmp_path / "x.safetensors", metadata=literals(tree))
    with pytest.raises(CheckpointError, match=r"dec_repa_head\.layers\.0\.weight.*inference_only=True"):
        from_pretrained(tmp_path / "x.safetensors")
    model = from_pretrained(tmp_path / "x.safetensors", inference_only=True)
    assert equal(to_published(model)[0], case.state())
    other = {**state, "decoder.module_dict.dec_else.weight": torch.zeros(1)}
    model, ours = convert_state(other, config=case.config, inference_only=True)
    with pytest.raises(CheckpointError, match=r"1 unexpected: decoder\.module_dict\.dec_else\.weight"):
        model.load_weights(ours)


@pytest.mark.parametrize("stride", [37])
def test_any_tensor_missing_or_mis_shaped_is_an_error(stride: int) -> None:
    case = GoldenCase(GOLDEN / "tiny_a")
    state = {name: torch.empty(shape, device="meta") for name, shape in case.shapes.items()}
    own = [key for key in state if not key.startswith("vae.") and ".blocks." not in key]
    for key in {*sorted(state)[::stride], *own}:
        without = {k: v for k, v in state.items() if k != key}
        for shape in (None, (7, 1, 2), ()):
            broken = without if shape is None else {**state, key: torch.empty(shape, device="meta")}
            with pytest.raises(VistokError) as error:
                model, ours = convert_state(broken, config=case.config, where="file")
                model.load_weights(ours, where="file")
            assert str(error.value).startswith("file"), (key, str(error.value))


def test_layouts_are_told_apart() -> None:
    for name in ("tiny_a", "tiny_b"):
        shapes = GoldenCase(GOLDEN / name).shapes
        assert recognise(shapes) is FLEXTOK
        alone = {key.removeprefix("vae.vae."): shape for key, shape in shapes.items() if key.startswith("vae.vae.")}
        assert recognise(alone) is KL_VAE
        assert sum(source.signature <= shapes.keys() for source in sources()) == 1


def test_an_autoencoder_by_itself(tmp_path: Path) -> None:
    """As its repository has it: diffusers' file names and configuration."""
    case = GoldenCase(GOLDEN / "tiny_a")
    state = {key.removeprefix("vae.vae."): x for key, x in case.state("vae.").items()}
    state = {key.removeprefix("vae."): x for key, x in state.items()}
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file(state, path)
    (tmp_path / "config.json").write_text(json.dumps({"scaling_factor": 0.25, "norm_num_groups": 16}))
    for where in (path, tmp_path):
        model = from_pretrained(where)
        assert isinstance(model, KlVae) and model.config.network.scaling_factor == 0.25
        assert model.config.network.norm_groups == 16 and model.config.network.block_channels == (32, 32, 64, 64)
        again, told = to_published(model)
        assert equal(again, state) and told["latent_channels"] == 4
    assert KL_VAE.read_config({k: tuple(v.shape) for k, v in state.items()}, told) == model.config


def test_hub_repositories_of_both_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One without a config.json, whose file tells its configuration; one with the file name of diffusers."""
    from huggingface_hub.errors import EntryNotFoundError

    case = GoldenCase(GOLDEN / "tiny_b")
    state = case.state()
    (tmp_path / "whole").mkdir()
    (tmp_path / "vae").mkdir()
    save_file(state, tmp_path / "whole" / "model.safetensors", metadata=literals(case.config))
    alone = {key.removeprefix("vae.vae."): x for key, x in state.items() if key.startswith("vae.vae.")}
    save_file(alone, tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    (tmp_path / "vae" / "config.json").write_text('{"scaling_factor": 0.75}')

    def download(repository: str, name: str) -> str:
        path = tmp_path / repository.partition("/")[2] / name
        if not path.exists():
            raise EntryNotFoundError(name)
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    model = from_pretrained("somebody/whole")
    assert model.config.max_timestep == 1.0 and equal(to_published(model)[0], state)
    assert from_pretrained("somebody/vae").config.network.scaling_factor == 0.75
    with pytest.raises(CheckpointError, match=r"no model\.safetensors or diffusion"):
        from_pretrained("somebody/nothing")


def test_cards_are_the_published_sizes() -> None:
    card = get_card("flextok_d18_d28.dfn")
    assert card.hub_id == "EPFL-VILAB/flextok_d18_d28_dfn" and "research only" in card.licence
    from vistok.config import from_dict

    model = empty_model(FlexTok, from_dict(FlexTokConfig, card.config))
    values = sum(tensor.numel() for tensor in model.state_dict().values())
    assert values == 2_540_882_841 and math.prod(model.codebook_size) == 64_000
    network = from_dict(KlVaeConfig, get_card("flextok_vae_c8.dfn").config).network
    assert network == KlAutoencoderConfig(latent_channels=8)
