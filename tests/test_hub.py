"""Making, loading and saving models: what may go wrong with a checkpoint, and what is said about it."""

from __future__ import annotations

import json
import logging
import os
import pickle
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_models import BASE, KINDS, make, pictures
from torch.utils._python_dispatch import TorchDispatchMode

from vistok.errors import CheckpointError, ConfigError, VistokError
from vistok.hub import create_model, empty_model, from_pretrained, read_state
from vistok.models.base import key_report
from vistok.models.maskgit_vqgan import MaskGitVqgan
from vistok.models.titok import TiTok
from vistok.registry import get_card, list_models, model_class

from golden_cases import GoldenCase

GOLDEN = Path(__file__).parent / "golden" / "titok"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder of vistok's with a tiny model."""
    folder = tmp_path / "saved"
    make("vq_pixels").save_pretrained(folder)
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# Loading what was saved.


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_folder_and_file_give_the_same_model(kind: str, tmp_path: Path) -> None:
    model = make(kind)
    model.name = "mine"
    model.save_pretrained(tmp_path)
    for where in (tmp_path, str(tmp_path), tmp_path / "model.safetensors"):
        again = from_pretrained(where)
        assert (again.config, again.name, again.training) == (model.config, "mine", False)
        assert again.weight_hash() == model.weight_hash()
        assert all(parameter.requires_grad for parameter in again.parameters())


def test_the_mixin_door_is_the_same_loader(saved: Path) -> None:
    assert TiTok.from_pretrained(saved).weight_hash() == from_pretrained(saved).weight_hash()
    with pytest.raises(CheckpointError, match="holds a TiTok, not a MaskGitVqgan"):
        MaskGitVqgan.from_pretrained(str(saved))


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16, torch.float64])
def test_device_and_dtype(saved: Path, dtype: torch.dtype | None) -> None:
    model = from_pretrained(saved, device="cpu", dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype or torch.float32}
    assert model.device == torch.device("cpu") and model.dtype == (dtype or torch.float32)
    assert model.decode(model.encode(pictures(1))).dtype == torch.float32
    made = create_model("titok_tiny_32.emoji", dtype=dtype)
    assert made.dtype == (dtype or torch.float32) and made.name == "titok_tiny_32.emoji"


@pytest.mark.gpu
def test_loading_onto_a_gpu(saved: Path) -> None:
    model = from_pretrained(saved, device="cuda", dtype=torch.bfloat16)
    assert model.device.type == "cuda" and model.dtype == torch.bfloat16
    assert model.decode(model.encode(pictures(2))).shape == (2, 3, 32, 32)


def test_an_empty_model_has_sizes_and_no_values() -> None:
    model = empty_model(TiTok, BASE)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not key_report(model.state_dict(), make("vq_pixels").state_dict())
    fsq = empty_model(TiTok, KINDS["fsq_ordered"])
    assert fsq.quantizer.levels.tolist() == [4, 3, 5, 2], "tables that are not saved are needed at once"


def test_nothing_is_drawn_for_an_empty_model() -> None:
    """Drawing for meta tensors would import torch's compiler and sympy: seconds at every start."""
    called = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.append(str(function))
            return function(*args, **(kwargs or {}))

    with Record():
        empty_model(TiTok, KINDS["vq_legacy"])
    assert called and not [name for name in called if "normal" in name or "uniform" in name]


# Making.


def test_create_model_with_weights_from_disk(tmp_path: Path) -> None:
    model = create_model("titok_tiny_32.emoji")
    model.save_pretrained(tmp_path)
    again = create_model("titok_tiny_32.emoji", pretrained=tmp_path, dtype=torch.float64)
    assert (again.name, again.dtype) == ("titok_tiny_32.emoji", torch.float64)
    assert again.weight_hash() == model.weight_hash()


def test_create_model_refuses_weights_of_another_model(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds another titok than titok_tiny_32\.emoji"):
        create_model("titok_tiny_32.emoji", pretrained=saved)
    with pytest.raises(CheckpointError, match=r"holds a titok, and maskgit_vqgan\.imagenet is a maskgit_vqgan"):
        create_model("maskgit_vqgan.imagenet", pretrained=saved)
    with pytest.raises(VistokError, match="pretrained weights fix the configuration; drop num_tokens"):
        create_model("titok_tiny_32.emoji", pretrained=saved, num_tokens=3)
    with pytest.raises(ConfigError, match=r"titok_tiny_32\.emoji: `num_tokens` wants int"):
        create_model("titok_tiny_32.emoji", num_tokens="many")


def test_cards_and_names() -> None:
    names = list_models("*", buildable=False)
    assert names == sorted(set(names)) and set(list_models()) <= set(names)
    for name in names:
        card = get_card(name)
        assert card.kind in ("tokenizer", "generator") and name.count(".") == (0 if card.embedded else 1)
        assert not card.tokenizer or card.tokenizer in names
        assert card.hub_id.count("/") in (0, 1) and card.file.count(":") in (0, 1)
    assert list_models("titok_*", kind="generator") == [] and list_models("no such *") == []
    with pytest.raises(VistokError, match="cannot build the family 'titko'; did you mean titok"):
        model_class("titko")


# Wrong checkpoints.


class _Runs:
    """An object whose unpickling would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_with_an_object_is_refused_and_not_run(suffix: str, legacy: bool, tmp_path: Path) -> None:
    path, target = tmp_path / f"evil{suffix}", tmp_path / "it_ran"
    state = {"latent_tokens": torch.zeros(2), "evil": _Runs(target)}
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"evil.*holds objects, which vistok does not load"):
        from_pretrained(path)
    path.write_bytes(pickle.dumps(state["evil"], protocol=2))
    with pytest.raises(CheckpointError, match="evil"):
        from_pretrained(path)
    assert not target.exists()


def test_a_pickle_under_another_name_is_not_run_either(tmp_path: Path) -> None:
    for name in ("evil.safetensors", "evil", "evil.zip"):
        (tmp_path / name).write_bytes(pickle.dumps(_Runs(tmp_path / "it_ran"), protocol=2))
        with pytest.raises(CheckpointError, match="evil"):
            from_pretrained(tmp_path / name)
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("keep", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_truncated_files_are_refused_by_name(suffix: str, keep: float, tmp_path: Path) -> None:
    state = GoldenCase(GOLDEN / "tiny-vae").state()
    path = tmp_path / f"torn{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(CheckpointError, match=rf"torn\{suffix}"):
        from_pretrained(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt"])
@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html><html>404</html>", b"\0" * 64, b"version https://git-lfs", b"{}"]
)
def test_files_that_are_no_checkpoint(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"wrong{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"wrong\{suffix}"):
        from_pretrained(path)


@settings(max_examples=60)
@given(data=st.binary(max_size=200), at=st.integers(0, 10**6), suffix=st.sampled_from([".safetensors", ".bin"]))
def test_damaged_files_load_or_are_refused(
    data: bytes, at: int, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any bytes written over any place: no error of torch's, safetensors' or pickle's comes out."""
    folder = tmp_path_factory.getbasetemp()
    path = folder / f"damaged{suffix}"
    state = {"a": torch.arange(40.0), "b": torch.zeros(3, 3)}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    content = bytearray(path.read_bytes())
    at %= len(content)
    content[at : at + len(data)] = data
    path.write_bytes(content)
    try:
        assert all(isinstance(value, torch.Tensor) for value in read_state(path).values())
    except CheckpointError as error:
        assert "damaged" in str(error)


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        torch.zeros(3),
        {"a": 1.0},
        {"a": {"b": torch.zeros(2)}},
        {3: torch.zeros(2)},
        {"state_dict": {}},
        {"state_dict": {7: torch.zeros(2)}},
        "text",
        None,
    ],
    ids=str,
)
def test_plain_data_that_is_no_state_dict(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "odd.bin")
    with pytest.raises(CheckpointError, match=r"odd\.bin is not a state dict"):
        from_pretrained(tmp_path / "odd.bin")


def test_random_tensors_are_no_known_layout(tmp_path: Path) -> None:
    save_file({f"layer{i}.weight": torch.randn(3, 3) for i in range(9)}, tmp_path / "random.safetensors")
    with pytest.raises(CheckpointError, match=r"random\.safetensors: 9 tensors of no layout.*layer0\.weight"):
        from_pretrained(tmp_path / "random.safetensors")


def test_an_archive_that_is_no_checkpoint(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "archive.bin", "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(CheckpointError, match=r"archive\.bin"):
        from_pretrained(tmp_path / "archive.bin")


def test_what_does_not_fit_is_named(saved: Path) -> None:
    state = load_file(saved / "model.safetensors")
    state["extra.weight"] = torch.zeros(2)
    state["decoder.mask_token"] = torch.zeros(5)
    del state["conv_out.bias"]
    save_file(state, saved / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        from_pretrained(saved)
    text = str(error.value)
    assert "model.safetensors does not fit TiTok" in text
    assert "1 missing: conv_out.bias" in text and "1 unexpected: extra.weight" in text
    assert "1 mis-shaped: decoder.mask_token is (5,), wanted (" in text


def test_a_long_report_is_cut(saved: Path) -> None:
    state = load_file(saved / "model.safetensors")
    save_file(state | {f"extra{i:03d}": torch.zeros(1) for i in range(50)}, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"50 unexpected: extra000, .*, and 38 more$"):
        from_pretrained(saved)


def test_weights_that_are_no_floats_are_refused(saved: Path) -> None:
    state = load_file(saved / "model.safetensors")
    state["conv_out.bias"] = state["conv_out.bias"].long()
    save_file(state, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"conv_out\.bias is .*int64"):
        from_pretrained(saved)


# Wrong places.


def test_places_without_weights(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"the folder .*empty has none of model\.safetensors"):
        from_pretrained(tmp_path / "empty")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"the folder .*has none of"):
        from_pretrained(tmp_path / "folder.safetensors")
    with pytest.raises(CheckpointError, match=r"cannot be read"):
        read_state(tmp_path / "folder.safetensors")
    with pytest.raises(CheckpointError, match=r"is not a checkpoint: wanted \.safetensors, \.bin"):
        (tmp_path / "notes.txt").write_text("hello")
        from_pretrained(tmp_path / "notes.txt")


def test_a_folder_where_the_weights_should_be(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="has none of"):
        from_pretrained(saved)


@pytest.mark.parametrize("where", ["no_such_folder", "./a/b", "/no/such/file.bin", "a/b/c", "titok_l32", "~/x/y"])
def test_missing_files_are_not_taken_for_hub_ids(where: str) -> None:
    with pytest.raises(CheckpointError, match=f"there is no file or folder {where}, and no model of that name"):
        from_pretrained(where)


@pytest.mark.parametrize(
    "where", ["nobody/no-such-model", "nobody/no-such-model:weights.bin", "no..body/x", "titok_l32.imagenet"]
)
def test_offline_hub_ids_fail_quickly_and_say_what_to_do(where: str) -> None:
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match=r"cannot be fetched from the Hugging Face hub.*on this machine"):
        from_pretrained(where)
    assert time.perf_counter() - start < 5.0


def test_names_without_published_weights_say_so() -> None:
    for where in ("titok_tiny_32.emoji", "titok_l32_stage1.imagenet"):
        with pytest.raises(VistokError, match=f"no weights of {where} are published; .*"):
            from_pretrained(where)


def test_the_hub_is_asked_for_config_and_weights(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repository: str, file: str) -> str:
        asked.append((repository, file))
        return str(saved / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    model = from_pretrained("somebody/tokenizer")
    assert asked == [("somebody/tokenizer", "config.json"), ("somebody/tokenizer", "model.safetensors")]
    assert model.weight_hash() == make("vq_pixels").weight_hash()


# Wrong configurations beside the weights.


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '"words"', "null", "\xff"])
def test_a_config_that_is_no_json_object(text: str, saved: Path) -> None:
    (saved / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        from_pretrained(saved)


@pytest.mark.parametrize("family", ["titko", "", 5, None, ["titok"], {"a": 1}, "os:system"])
def test_an_unknown_family(family: Any, saved: Path) -> None:
    edit_config(saved, family=family)
    with pytest.raises(VistokError, match="cannot build the family"):
        from_pretrained(saved)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_tokenz": 3}, r"config\.json: unknown key `num_tokenz`; did you mean num_tokens"),
        ({"num_tokens": "x"}, r"config\.json: `num_tokens` wants int"),
        (5, r"config\.json: the top wants keys and values, got 5"),
        ({}, "does not fit TiTok"),
    ],
)
def test_a_wrong_configuration(config: Any, message: str, saved: Path) -> None:
    edit_config(saved, config=config)
    with pytest.raises(VistokError, match=message):
        from_pretrained(saved)


def test_our_weights_without_their_configuration(saved: Path) -> None:
    (saved / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: \d+ tensors of no layout"):
        from_pretrained(saved)


# Saving.


def test_saving_is_quiet_and_complete(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        make("gaussian").save_pretrained(tmp_path)
    assert not caplog.records
    assert {"config.json", "model.safetensors"} <= {path.name for path in tmp_path.iterdir()}
    assert not list(tmp_path.glob("*.tmp"))
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["family"] == "titok" and content["config"]["quantizer"] == "gaussian"


def test_saving_over_a_model_replaces_it(saved: Path) -> None:
    model = make("fsq_ordered")
    model.save_pretrained(saved)
    assert from_pretrained(saved).config == model.config


def test_loading_then_saving_in_place(saved: Path) -> None:
    """Loaded tensors may be mapped from the very file that is replaced."""
    before = from_pretrained(saved)
    before.save_pretrained(saved)
    assert from_pretrained(saved).weight_hash() == before.weight_hash() == make("vq_pixels").weight_hash()


@pytest.mark.parametrize("fails", ["vistok.models.base.save_file", "vistok.models.base.os.replace"])
def test_an_interrupted_save_leaves_the_old_model_whole(
    fails: str, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: (saved / name).read_bytes() for name in ("config.json", "model.safetensors")}

    def fail(*args: Any, **_: Any) -> None:
        Path(args[1] if fails.endswith("save_file") else args[0]).write_bytes(b"torn")
        raise OSError("no space left on device")

    monkeypatch.setattr(fails, fail)
    with pytest.raises(OSError, match="no space left"):
        make("gaussian").save_pretrained(saved)
    monkeypatch.undo()
    assert {name: (saved / name).read_bytes() for name in before} == before
    assert from_pretrained(saved).weight_hash() == make("vq_pixels").weight_hash()


def test_pushing_uploads_the_saved_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    uploads: list[dict[str, Any]] = []
    model = make("vq_pixels")

    class Api:
        def __init__(self, **_: Any) -> None: ...

        def create_repo(self, *, repo_id: str, **_: Any) -> Any:
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id: str, folder_path: Path, **rest: Any) -> str:
            again = from_pretrained(folder_path)
            names = {path.name for path in Path(folder_path).iterdir()}
            uploads.append({"repo": repo_id, "hash": again.weight_hash(), "names": names, **rest})
            return "https://hub/commit"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert model.push_to_hub("somebody/tokenizer", commit_message="first") == "https://hub/commit"
    (upload,) = uploads
    assert upload["repo"] == "somebody/tokenizer" and upload["commit_message"] == "first"
    assert upload["hash"] == model.weight_hash()
    assert {"config.json", "model.safetensors", "README.md"} <= upload["names"]


# The fingerprint of weights.


def test_equal_weights_have_equal_hashes() -> None:
    model, same = make("vq_legacy"), make("vq_legacy")
    assert model.weight_hash() == same.weight_hash() and len(model.weight_hash()) == 16
    assert make("vq_pixels").weight_hash() != make("gaussian").weight_hash()
    same.load_state_dict(model.state_dict())
    assert same.weight_hash() == model.weight_hash()


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adam])
@pytest.mark.parametrize("options", [{"foreach": True}, {"foreach": False}, {"fused": True}], ids=str)
def test_any_step_changes_the_hash(optimizer: Any, options: dict[str, bool]) -> None:
    model = make("vq_pixels").train()
    optimizer = optimizer(model.parameters(), lr=1e-4, **options)
    seen = {model.weight_hash()}
    for step in range(3):
        optimizer.zero_grad()
        model(pictures(2, seed=step))["reconstruction"].square().mean().backward()
        optimizer.step()
        seen.add(model.weight_hash())
    assert len(seen) == 4


@pytest.mark.parametrize("name", ["decoder.mask_token", "conv_out.bias", "quantizer.codebook"])
def test_one_changed_tensor_changes_the_hash(name: str) -> None:
    model = make("vq_pixels")
    before = model.weight_hash()
    with torch.no_grad():
        model.get_parameter(name).add_(1e-4)
    assert model.weight_hash() != before


def test_buffers_count_too() -> None:
    model = make("vq_text").train()
    before = model.weight_hash()
    with torch.no_grad():
        model.quantizer.usage.fill_(0.5)
    assert model.weight_hash() != before


def test_names_and_configuration_do_not_matter() -> None:
    model = make("vq_pixels")
    before = model.weight_hash()
    model.name, model.config = "other", replace(model.config, commitment_cost=0.5)
    assert model.weight_hash() == before


@pytest.mark.parametrize("change", ["dtype", "data", "load"])
def test_a_cached_hash_is_not_kept_when_tensors_are_replaced(change: str) -> None:
    model, other = make("vq_pixels"), make("vq_pixels")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.25)
    asked, fresh = make("vq_pixels"), make("vq_pixels")
    asked.weight_hash()
    for one in (asked, fresh):
        if change == "dtype":
            one.to(torch.bfloat16)
        elif change == "data":
            for mine, new in zip(one.parameters(), other.parameters(), strict=True):
                mine.data = new.detach().clone()
        else:
            one.load_state_dict({key: value.clone() for key, value in other.state_dict().items()}, assign=True)
    assert asked.weight_hash() == fresh.weight_hash() != model.weight_hash()
