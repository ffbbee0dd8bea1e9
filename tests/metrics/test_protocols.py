"""Named protocols."""

from __future__ import annotations

import dataclasses

import pytest

from vistok.errors import ConfigError
from vistok.metrics import Protocol, get_protocol, list_protocols, register_protocol
from vistok.metrics import protocols as module


def test_titok_is_as_published() -> None:
    protocol = get_protocol("titok")
    assert (protocol.crop, protocol.interpolation, protocol.eight_bit) == ("center", "bicubic", True)
    assert (protocol.features, protocol.num_images) == ("inception", 50_000)
    with pytest.raises(dataclasses.FrozenInstanceError):
        protocol.crop = "arc"


def test_names_are_unique(monkeypatch) -> None:
    monkeypatch.setattr(module, "_PROTOCOLS", dict(module._PROTOCOLS))
    mine = Protocol(name="mine", crop="arc")
    register_protocol(mine)
    register_protocol(mine)
    assert get_protocol("mine") is mine
    assert get_protocol(mine) is mine
    assert "mine" in list_protocols()
    with pytest.raises(ConfigError, match="another protocol named 'mine'"):
        register_protocol(Protocol(name="mine"))


def test_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown protocol 'titokk'; did you mean titok\?"):
        get_protocol("titokk")
    with pytest.raises(
        ConfigError,
        match="known: adm-50k, clean-fid, imagenet256-val, offline-lite0, pytorch-fid, titok, torch-fidelity",
    ):
        get_protocol("zzz")


def test_shipped_ones_say_what_they_differ_in() -> None:
    adm, clean, pytorch, fidelity = (get_protocol(n) for n in ("adm-50k", "clean-fid", "pytorch-fid", "torch-fidelity"))
    assert {one.resize for one in (adm, fidelity)} == {"tf1_bilinear"}
    assert (pytorch.resize, clean.resize) == ("bilinear", "pil_bicubic")
    assert (adm.crop, adm.neighbours, adm.neighbour_images, adm.is_shuffle) == ("arc", 3, 10_000, False)
    assert get_protocol("imagenet256-val").crop == "arc" and get_protocol("titok").crop == "center"
    assert all(one.weights_hash == "6726825d" for one in (adm, clean, pytorch, fidelity))
    assert "resize: pil_bicubic" in clean.lines()


def test_a_changed_one_has_a_new_name() -> None:
    adm = get_protocol("adm-50k")
    mine = adm.changed("adm-center", crop="center")
    assert (mine.name, mine.crop, mine.neighbours, mine.source) == ("adm-center", "center", 3, "adm-50k, changed")
    for name in ("adm-50k", "titok"):
        with pytest.raises(ConfigError, match="new name"):
            adm.changed(name, crop="center")
    with pytest.raises(ConfigError, match="no 'crops'"):
        adm.changed("x", crops="center")
    with pytest.raises(ConfigError, match="resize is one of"):
        adm.changed("x", resize="lanczos")


def test_printed_changed_and_read_again(tmp_path) -> None:
    adm = get_protocol("adm-50k")
    text = "\n".join(adm.lines())
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    assert get_protocol(str(file)) == adm
    file.write_text(text.replace("crop: arc", "crop: center"))
    with pytest.raises(ConfigError, match=r"mine\.yaml: a changed protocol has a new name; 'adm-50k' is taken"):
        get_protocol(str(file))
    file.write_text(text.replace("crop: arc", "crop: center").replace("name: adm-50k", "name: mine"))
    assert get_protocol(str(file)) == adm.changed("mine", crop="center", source=adm.source)
    file.write_text("name: mine\ncrops: center\n")
    with pytest.raises(ConfigError, match="crops"):
        get_protocol(str(file))
    with pytest.raises(ConfigError, match="cannot read"):
        get_protocol(str(tmp_path / "none.yaml"))
