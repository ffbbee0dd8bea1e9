"""Published generators, as their repositories have them: configurations beside the weights, and the sampling of their cards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from command_line import run
from safetensors.torch import save_file

from vistok.config import from_dict
from vistok.data.imagenet import imagenet_names
from vistok.errors import CheckpointError
from vistok.generate.rar import Rar, RarConfig
from vistok.generate.sampling import SamplingConfig
from vistok.hub import create_model, from_pretrained, to_published
from vistok.registry import get_card, list_models, model_class

from golden_cases import GoldenCase

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the hub: ``owner/repository/file``."""
    from huggingface_hub.errors import EntryNotFoundError

    def download(repository: str, name: str) -> str:
        path = tmp_path / repository / name
        if not path.exists():
            raise EntryNotFoundError(name)
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return tmp_path


@pytest.fixture
def rar_file(hub: Path) -> Path:
    """``rar_b.bin``, small: a plain state dict, and nothing that says how it is sampled or what its classes are."""
    tiny = {"codebook_size": 24, "num_tokens": 9, "num_classes": 1000, "width": 32, "depth": 2, "num_heads": 2}
    state, _ = to_published(Rar(RarConfig(**tiny, hidden_width=48, spare_slots=98)))
    path = hub / "yucornetto" / "RAR" / "rar_b.bin"
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    return path


def sampling_of(name: str) -> SamplingConfig:
    card = get_card(name)
    return from_dict(model_class(card.family).config_class, {"sampling": dict(card.sampling)}).sampling


def test_a_published_file_is_sampled_as_its_card_says(rar_file: Path) -> None:
    expected = sampling_of("rar_b.imagenet")
    assert expected.cfg_scale == 16.0 and expected.cfg_schedule == "power_cosine"
    for model in (
        from_pretrained("rar_b.imagenet"),
        from_pretrained("yucornetto/RAR:rar_b.bin"),
        create_model("rar_b.imagenet", pretrained=True),
        create_model("rar_b.imagenet", pretrained=rar_file),
    ):
        assert model.name == "rar_b.imagenet" and model.sampling == expected
    plain = from_pretrained(rar_file)  # a file of any name tells nothing
    assert plain.name == "" and plain.sampling == SamplingConfig()


def test_classes_of_imagenet_have_their_names(rar_file: Path) -> None:
    model = from_pretrained("rar_b.imagenet")
    assert model.encode_condition(["tench", "golden retriever", "crane 517", 5]).tolist() == [0, 207, 517, 5]
    assert from_pretrained(rar_file).config.class_names == ()
    names = create_model("maskgit_titok_l32.imagenet", device="meta").config.class_names
    assert names == model.config.class_names and len(set(names)) == 1000
    assert create_model("rar_b.imagenet", device="meta", num_classes=3).config.class_names == ()
    folders = list(imagenet_names())
    assert folders == sorted(folders) and folders[0] == "n01440764"


def test_a_saved_model_keeps_the_sampling_it_was_saved_with(rar_file: Path, tmp_path: Path) -> None:
    own = {
        "sampling": {"cfg_scale": 2.0},
        "codebook_size": 24,
        "num_tokens": 4,
        "width": 32,
        "depth": 1,
        "num_heads": 2,
    }
    create_model("rar_tiny.emoji", **own).save_pretrained(tmp_path / "own")
    for model in (from_pretrained(tmp_path / "own"), create_model("rar_b.imagenet", pretrained=tmp_path / "own")):
        assert model.sampling.cfg_scale == 2.0
    with pytest.raises(CheckpointError, match=r"holds a rar, and titok_l32\.imagenet is a titok"):
        create_model("titok_l32.imagenet", pretrained=rar_file)


def test_convert_by_name(rar_file: Path, tmp_path: Path) -> None:
    assert run("convert", rar_file, tmp_path / "named", "--name", "rar_b.imagenet") == 0
    model = from_pretrained(tmp_path / "named")
    assert model.name == "rar_b.imagenet" and model.sampling == sampling_of("rar_b.imagenet")


@pytest.mark.parametrize("name", list_models(kind="generator"))
def test_sampling_of_every_card_fits_its_family(name: str) -> None:
    assert sampling_of(name) == sampling_of(name).updated(**get_card(name).sampling)


@pytest.mark.parametrize("case", ["tiny_c2i_a", "tiny_t2i_a", "tiny_t2i_b"])
def test_the_tree_beside_flexar_is_read(case: str, hub: Path) -> None:
    """It tells what no tensor does: norms without gain or bias, heads, the text encoder, guidance."""
    recording = GoldenCase(GOLDEN / "flextok_ar" / case)
    folder = hub / "EPFL-VILAB" / "FlexAR-113M-T2I"
    folder.mkdir(parents=True)
    save_file(recording.state(), folder / "model.safetensors")
    (folder / "config.yaml").write_text(yaml.safe_dump(recording.config))
    expected = from_pretrained(folder / "model.safetensors", config=recording.config).config
    assert expected.attention.num_heads != 1  # what shapes alone would tell
    for where in (folder, folder / "model.safetensors"):
        assert from_pretrained(where).config == expected
    model = from_pretrained("EPFL-VILAB/FlexAR-113M-T2I")
    assert model.config == replace(expected, sampling=expected.sampling.updated(cfg_scale=3.0))
    assert model.name == "flexar_113m.text"
