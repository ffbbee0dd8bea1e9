"""Webdataset shards: random access, labels and captions; damaged and foreign files."""

from __future__ import annotations

import io
import json
import sys
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vistok.data import NoValSplitError, open_source
from vistok.data.tar_index import mapped, tar_members
from vistok.errors import DataError, MissingExtraError


def _png(color) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(file, "PNG")
    return file.getvalue()


def _tar(path, members, format=tarfile.PAX_FORMAT, mode="w"):
    with tarfile.open(path, mode, format=format) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def shards(tmp_path):
    pytest.importorskip("webdataset")
    _tar(
        tmp_path / "a-000.tar",
        [
            ("x/1.cls", b"2"),
            ("x/1.png", _png((255, 0, 0))),
            ("x/1.txt", "ein Löwe\n".encode()),
            ("x/2.json", json.dumps({"label": 1, "caption": "two", "other": [1]}).encode()),
            ("x/2.PNG", _png((0, 255, 0))),
            ("x/3.txt", b"no picture here"),
        ],
    )
    _tar(tmp_path / "a-001.tar", [("x/1.png", _png((0, 0, 255))), ("readme", b"not of a sample")])
    return tmp_path


def test_samples(shards, caplog):
    source = open_source(f"wds:{shards}/a-{{000..001}}.tar")
    assert len(source) == 3 and "1 samples without a picture" in caplog.text
    assert [source.name(i) for i in range(3)] == ["a-000.tar/x/1", "a-000.tar/x/2", "a-001.tar/x/1"]
    assert [source.label(i) for i in range(3)] == [2, 1, -1] and source.classes == ("0", "1", "2")
    assert [source.caption(i) for i in range(3)] == ["ein Löwe", "two", ""]
    assert [source.image(i).getpixel((0, 0)) for i in (2, 0, 1)] == [(0, 0, 255), (255, 0, 0), (0, 255, 0)]


def test_globs_and_lists_name_the_same(shards):
    names = open_source(f"wds:{shards}/a-{{000..001}}.tar").listing_hash()
    assert open_source(f"wds:{shards}/*.tar", split="train").listing_hash() == names
    assert open_source(f"wds:{shards}/a-000.tar::{shards}/a-001.tar").listing_hash() == names
    (shards / "b").mkdir()
    _tar(shards / "b" / "a-001.tar", [("x/1.png", _png("red"))])
    same_name = open_source(f"wds:{shards}/a-001.tar::{shards}/b/a-001.tar")
    assert same_name.name(0) != same_name.name(1)


def test_refuses(shards):
    with pytest.raises(NoValSplitError, match=r"data\.val"):
        open_source(f"wds:{shards}/*.tar", split="val")
    with pytest.raises(DataError, match=r"no shard .*a-002\.tar"):
        open_source(f"wds:{shards}/a-{{000..002}}.tar")
    with pytest.raises(DataError, match="local"):
        open_source("wds:https://example.org/a-{000..001}.tar")
    with pytest.raises(DataError, match="behind it"):
        open_source("wds:")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("1.txt", b"only text")], "no pictures"),
        ([("1.png", b"x"), ("1.cls", b"cat")], r"1\.cls: a label is a class number.*cat"),
        ([("1.png", b"x"), ("1.cls", b"-2")], "class number"),
        ([("1.png", b"x"), ("1.cls", b"99999999999")], "class number"),
        ([("1.png", b"x"), ("1.json", b"{")], "not valid JSON"),
        ([("1.png", b"x"), ("1.json", b"[1]")], "no keys and values"),
    ],
)
def test_bad_members(tmp_path, members, message):
    pytest.importorskip("webdataset")
    _tar(tmp_path / "b.tar", members)
    with pytest.raises(DataError, match=message):
        open_source(f"wds:{tmp_path}/b.tar")


def test_unreadable_picture_and_caption_are_named(tmp_path):
    pytest.importorskip("webdataset")
    _tar(tmp_path / "b.tar", [("1.png", b"no picture"), ("1.txt", b"\xff\xfe")])
    source = open_source(f"wds:{tmp_path}/b.tar")
    with pytest.raises(DataError, match=r"b\.tar/1"):
        source.image(0)
    with pytest.raises(DataError, match="UTF-8"):
        source.caption(0)


def test_missing_extra(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("webdataset")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(MissingExtraError, match=r"vistok\[data\]"):
        open_source("wds:a.tar")


def _members(path):
    with mapped(path) as data:
        return [(name, data[offset : offset + size]) for name, offset, size in tar_members(data, path)]


@settings(max_examples=40, deadline=None)
@given(
    names=st.lists(
        st.text(st.characters(exclude_characters="\0/", codec="utf-8"), min_size=1, max_size=90), max_size=5
    ),
    deep=st.integers(0, 3),
    size=st.integers(0, 1300),
    format=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_index_agrees_with_tarfile(tmp_path_factory, names, deep, size, format):
    path = tmp_path_factory.mktemp("tar") / "t.tar"
    _tar(path, [(("a" * 70 + "/") * deep + name, bytes([65 + i % 26]) * size) for i, name in enumerate(names)], format)
    with tarfile.open(path) as tar:
        wanted = [(member.name, tar.extractfile(member).read()) for member in tar if member.isfile()]
    assert _members(path) == wanted


def test_index_of_ustar_prefixes_links_and_folders(tmp_path):
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        folder = tarfile.TarInfo("d")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "d"
        tar.addfile(link)
        member = tarfile.TarInfo("p" * 90 + "/" + "n" * 60)
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    assert _members(path) == [("p" * 90 + "/" + "n" * 60, b"abc")]


@settings(max_examples=60, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 4095), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4))
def test_index_of_random_damage_is_an_error_or_members(tmp_path_factory, changes):
    path = _tar(tmp_path_factory.mktemp("tar") / "t.tar", [("n" * 120 + ".png", b"x" * 600), ("ü.cls", b"1")])
    data = bytearray(path.read_bytes())
    for place, new in changes:
        data[place : place + len(new)] = new
    try:
        assert all(size >= 0 and offset + size <= len(data) for _, offset, size in tar_members(bytes(data), path))
    except DataError as error:
        assert "t.tar" in str(error)


def test_index_of_damaged_files(tmp_path):
    path = _tar(tmp_path / "t.tar", [("1.png", b"x" * 2000), ("2.png", b"y" * 2000)])
    whole = path.read_bytes()
    for data, message in [
        (whole[:1000], "truncated"),
        (whole[:2700], "truncated in a header"),
        (b"hello" * 400, "no tar file"),
        (whole[:10] + b"\xff" + whole[11:], "damaged"),
        (whole[:2560] + b"\1" * 512 + whole[3072:], "damaged"),
    ]:
        path.write_bytes(data)
        with pytest.raises(DataError, match=message):
            _members(path)
    _tar(path, [("1.png", b"x")], mode="w:gz")
    with pytest.raises(DataError, match=r"t\.tar is compressed|truncated"):
        _members(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        _members(path)
