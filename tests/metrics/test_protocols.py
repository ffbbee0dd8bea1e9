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
    with pytest.raises(ConfigError, match="known: offline-lite0, titok"):
        get_protocol("zzz")
