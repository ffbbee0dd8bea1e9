"""Configurations: strict reading, inheritance, overrides, YAML's oddities, and every file under configs/."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.config import apply_overrides, from_dict, load_config, load_yaml, merge, save_yaml, to_dict
from vistok.errors import ConfigError
from vistok.hub import empty_model
from vistok.losses.adaptive import AdaptiveLossConfig
from vistok.losses.tokenizer import TokenizerLossConfig
from vistok.registry import get_card, model_class
from vistok.training.config import TrainConfig

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))


@dataclass(frozen=True)
class Leaf:
    rate: float = 0.5
    pair: tuple[float, float] = (0.0, 1.0)
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Branch:
    leaf: Leaf = Leaf()
    size: str | Leaf = "small"
    leaves: tuple[Leaf, ...] = ()


@dataclass(frozen=True)
class Tree:
    title: str
    count: int = 3
    flag: bool = False
    kind: Literal["no", "fp16", "bf16"] = "no"
    maybe: int | None = None
    size: int | tuple[int, ...] = 1
    branch: Branch = Branch()
    table: dict[str, float] = field(default_factory=dict)
    free: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ConfigError(f"count is at least 0, got {self.count}")


def write(folder: Path, **files: str) -> Path:
    """Write ``name=text`` as ``name.yaml``; the path of the last one."""
    for name, text in files.items():
        path = folder / f"{name}.yaml"
        path.write_text(text, encoding="utf-8")
    return path


# Inheritance.


def test_a_base_lies_under_its_child_and_key_by_key(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        grandparent="title: a\ncount: 1\nbranch: {leaf: {rate: 1, pair: [1, 2]}}\nfree: {x: 1, y: {z: 2}}\n",
        parent="base: grandparent.yaml\ncount: 2\nbranch: {leaf: {rate: 0.25}}\n",
        child="base: parent.yaml\ntitle: c\nfree: {y: {w: 3}}\n",
    )
    config = load_config(Tree, path)
    assert (config.title, config.count, config.branch.leaf) == ("c", 2, Leaf(0.25, (1.0, 2.0)))
    assert config.free == {"x": 1, "y": {"z": 2, "w": 3}}


def test_a_base_is_relative_to_the_file_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path, top="title: top\n")
    write(tmp_path / "sub", middle="base: ../top.yaml\ncount: 7\n")
    config = load_config(Tree, write(tmp_path, child="base: sub/middle.yaml\n"))
    assert (config.title, config.count) == ("top", 7)


@pytest.mark.parametrize("files", [{"a": "base: a.yaml\n"}, {"b": "base: a.yaml\n", "a": "base: ./b.yaml\n"}])
def test_a_circle_of_bases_is_an_error(tmp_path: Path, files: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"circle.*a\.yaml -> "):
        load_config(Tree, write(tmp_path, **files))


def test_two_children_may_share_a_base(tmp_path: Path) -> None:
    """A base that is met twice, but not within itself, is no circle."""
    write(tmp_path, shared="title: s\n")
    for name in ("left", "right"):
        assert load_config(Tree, write(tmp_path, **{name: "base: shared.yaml\n"})).title == "s"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: nowhere.yaml\n", "cannot read the configuration.*nowhere"),
        ("base: [a.yaml, b.yaml]\n", "`base` takes one file name"),
        ("base: .\n", "cannot read the configuration"),
        ("title: [unclosed\n", "not valid YAML"),
        ("- a\n- b\n", "wanted a mapping.*got list"),
        ("just words\n", "wanted a mapping.*got str"),
        ("title: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(Tree, write(tmp_path, bad=text))


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"\xff\xfe\x00\x9f")
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(Tree, path)


def test_an_empty_file_has_the_defaults(tmp_path: Path) -> None:
    assert load_config(Leaf, write(tmp_path, empty="# nothing but a comment\n")) == Leaf()


def test_merge_leaves_its_arguments_alone() -> None:
    under, over = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert merge(under, over) == {"a": {"b": 1, "c": 2}}
    assert (under, over) == ({"a": {"b": 1}}, {"a": {"c": 2}})


# Overrides.


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("count=5", lambda c: c.count == 5),
        ("branch.leaf.rate=1e-4", lambda c: c.branch.leaf.rate == 1e-4),
        ("branch.leaf.pair=[0.9, 0.95]", lambda c: c.branch.leaf.pair == (0.9, 0.95)),
        ("branch.leaf.names=[a, b]", lambda c: c.branch.leaf.names == ("a", "b")),
        ("branch.size={rate: 2}", lambda c: c.branch.size == Leaf(2.0)),
        ("flag=true", lambda c: c.flag is True),
        ("maybe=null", lambda c: c.maybe is None),
        ("title=a=b", lambda c: c.title == "a=b"),
        ("title=emoji:", lambda c: c.title == "emoji:"),
        ("title=emoji:Smileys & Emotion", lambda c: c.title == "emoji:Smileys & Emotion"),
        ("title=wds:d/{0000..0999}.tar", lambda c: c.title == "wds:d/{0000..0999}.tar"),
        ("title=''", lambda c: c.title == ""),
        ("kind=no", lambda c: c.kind == "no"),
    ],
)
def test_overrides(override: str, read: Any) -> None:
    assert read(from_dict(Tree, apply_overrides({"title": "t", "maybe": 1}, [override])))


def test_later_overrides_win_and_the_data_stays_as_it_was() -> None:
    data = {"title": "t", "branch": {"leaf": {"rate": 1.0}}}
    out = apply_overrides(data, ["branch.leaf.rate=2", "branch.leaf.rate=3", "branch.size=big"])
    assert out["branch"] == {"leaf": {"rate": 3}, "size": "big"} and data["branch"] == {"leaf": {"rate": 1.0}}


@pytest.mark.parametrize("override", ["count", "=5", "", "count=[1", "count={a: b: c}"])
def test_bad_overrides(override: str) -> None:
    with pytest.raises(ConfigError, match="override"):
        apply_overrides({}, [override])


# Unknown keys and wrong types.


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"titel": 1}, "unknown key `titel`; did you mean title"),
        ({"branch": {"laef": {}}}, r"unknown key `branch\.laef`; did you mean leaf"),
        ({"branch": {"leaf": {"rte": 1}}}, r"unknown key `branch\.leaf\.rte`; did you mean rate"),
        ({"branch": {"size": {"rats": 1}}}, r"unknown key `branch\.size\.rats`; did you mean rate"),
        ({"branch": {"leaves": [{}, {"pear": 1}]}}, r"unknown key `branch\.leaves\[1\]\.pear`; did you mean pair"),
        ({"zzz": 1}, "unknown key `zzz`; known: branch, count"),
        ({1: 2}, "unknown key `1`"),
        ({"flag": "true"}, "`flag` wants bool, got 'true'"),
        ({"flag": 1}, "`flag` wants bool, got 1"),
        ({"count": True}, "`count` wants int, got True"),
        ({"count": 1.5}, "`count` wants int, got 1.5"),
        ({"count": "three"}, "`count` wants int, got 'three'"),
        ({"count": None}, "`count` wants int, got None"),
        ({"count": math.inf}, "`count` wants int, got inf"),
        ({"count": math.nan}, "`count` wants int, got nan"),
        ({"count": [1]}, "`count` wants int"),
        ({"title": 128}, "`title` wants str, got 128"),
        ({"kind": "fp8"}, "`kind` is one of no, fp16, bf16; got 'fp8'"),
        ({"kind": True}, "`kind` is one of no, fp16, bf16; got True"),
        ({"kind": ["no"]}, "`kind` is one of"),
        ({"maybe": "x"}, "`maybe` wants int, got 'x'"),
        ({"size": [1, "x"]}, r"`size\[1\]` wants int, got 'x'"),
        ({"table": {"a": "x"}}, r"`table\.a` wants float, got 'x'"),
        ({"table": {1: 1.0}}, "`table` wants str, got 1"),
        ({"free": {1: 1.0}}, "`free` wants str, got 1"),
        ({"table": [1]}, "`table` wants keys and values"),
        ({"branch": 5}, "branch wants keys and values, got 5"),
        ({"branch": {"leaf": {"pair": [1]}}}, r"`branch\.leaf\.pair` wants a list of 2, got \[1\]"),
        ({"branch": {"leaf": {"names": "ab"}}}, r"`branch\.leaf\.names` wants a list, got 'ab'"),
        ({"branch": {"leaf": {"rate": True}}}, r"`branch\.leaf\.rate` wants float, got True"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(data: dict[Any, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^here: .*{message}"):
        from_dict(Tree, {"title": "t", **data}, where="here")


def test_missing_fields_and_the_dataclass_own_checks() -> None:
    with pytest.raises(ConfigError, match="here: the key `title` is missing"):
        from_dict(Tree, {}, where="here")
    with pytest.raises(ConfigError, match="here: count is at least 0, got -1"):
        from_dict(Tree, {"title": "t", "count": -1}, where="here")


def test_a_finished_dataclass_is_taken_as_it_is() -> None:
    leaf = Leaf(0.1)
    assert from_dict(Branch, {"leaf": leaf}).leaf is leaf


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001", "'1e-4'", "1E-4", "+1e-4"])
def test_every_way_to_write_a_small_number(tmp_path: Path, text: str) -> None:
    """YAML 1.1 reads ``1e-4`` as a string."""
    assert load_config(Leaf, write(tmp_path, a=f"rate: {text}\n")).rate == 1e-4


@pytest.mark.parametrize(
    ("text", "value"), [("1e6", 1_000_000), ("1_000", 1000), ("2.0", 2), ("12345678901234567890", 12345678901234567890)]
)
def test_whole_numbers(tmp_path: Path, text: str, value: int) -> None:
    count = load_config(Tree, write(tmp_path, a=f"title: t\ncount: {text}\n")).count
    assert count == value and type(count) is int


def test_yaml_reads_no_as_false_and_the_choice_is_meant(tmp_path: Path) -> None:
    assert load_config(Tree, write(tmp_path, a="title: t\nkind: no\n")).kind == "no"


# Writing.

_words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_reals = st.floats(allow_nan=False, allow_infinity=False)
_leaves = st.builds(
    Leaf, rate=_reals, pair=st.tuples(_reals, _reals), names=st.none() | st.lists(_words, max_size=3).map(tuple)
)
# A plain string that stands where a size may be one or another is read as the string.
_trees = st.builds(
    Tree,
    title=_words,
    count=st.integers(0, 2**70),
    flag=st.booleans(),
    kind=st.sampled_from(["no", "fp16", "bf16"]),
    maybe=st.none() | st.integers(),
    size=st.integers() | st.lists(st.integers(), max_size=3).map(tuple),
    branch=st.builds(Branch, leaf=_leaves, size=_words | _leaves, leaves=st.lists(_leaves, max_size=2).map(tuple)),
    table=st.dictionaries(_words, _reals, max_size=3),
    free=st.dictionaries(_words, st.none() | st.booleans() | st.integers() | _reals | _words, max_size=3),
)


@settings(max_examples=100)
@given(tree=_trees)
def test_saving_and_loading_gives_the_same(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "tree.yaml"
    save_yaml(tree, path)
    assert load_config(Tree, path) == tree
    assert from_dict(Tree, json.loads(json.dumps(to_dict(tree)))) == tree


def test_an_interrupted_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "leaf.yaml"
    save_yaml(Leaf(), path)
    before = path.read_bytes()

    def stop(self: Path, *args: Any, **kwargs: Any) -> int:
        self.write_bytes(b"rate: 0.")
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", stop)
    with pytest.raises(KeyboardInterrupt):
        save_yaml(Leaf(rate=0.25), path)
    assert path.read_bytes() == before


@settings(max_examples=60)
@given(
    data=st.recursive(
        st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["title", "branch", "leaf", "pair", "size", "table", "kind", "x"]) | st.integers(0, 2),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_any_data_is_read_or_refused_clearly(data: Any) -> None:
    try:
        assert isinstance(from_dict(Tree, data), Tree)
    except ConfigError as error:
        assert str(error).startswith("configuration: ")


# The configurations of this repository.


def resolved(path: Path) -> TrainConfig:
    """A file as a run; what only a recipe's children say is filled in for the recipe itself."""
    families = {
        "flextok": "flextok_d12_d12.imagenet",
        "karl": "karl_small_vqgan_vq.imagenet",
        "alit": "alit_small_vqgan_vq.imagenet",
    }
    some = families.get(path.parent.name, "titok_s128.imagenet")
    fill = {"name": path.stem, "model": {"name": some}} if path.stem.startswith("base_") else {}
    return from_dict(TrainConfig, merge(fill, load_yaml(path)), where=str(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_every_configuration_loads_and_its_model_builds(path: Path) -> None:
    config = resolved(path)
    assert path.stem.startswith("base_") or load_config(TrainConfig, path) == config
    assert path.read_text().startswith("#"), "a configuration opens with what it reproduces"
    spec = dict(config.model)
    name, family = spec.pop("name", ""), spec.pop("family", "")
    card = get_card(name) if name else None
    cls = model_class(card.family if card else family)
    model = empty_model(cls, from_dict(cls.config_class, merge(card.config if card else {}, spec), where=str(path)))
    assert sum(parameter.numel() for parameter in model.parameters()) > 0
    if config.task == "tokenizer":
        loss = AdaptiveLossConfig if getattr(cls, "adaptive", None) is True else TokenizerLossConfig
        from_dict(loss, config.loss, where=f"{path}: loss")
        assert not config.freeze_encoder or model.config.head == "vqgan"
    else:
        assert path.stem.startswith("base_") or config.loss["tokenizer"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_every_configuration_survives_saving(path: Path, tmp_path: Path) -> None:
    config = resolved(path)
    save_yaml(config, tmp_path / "again.yaml")
    assert load_config(TrainConfig, tmp_path / "again.yaml") == config


def test_no_configuration_repeats_its_base() -> None:
    for path in FILES:
        own = yaml.safe_load(path.read_text())
        base = load_yaml(path.parent / own.pop("base")) if "base" in own else {}
        assert not [key for key in own if key in base and base[key] == own[key]], path


def test_names_of_runs_are_their_files() -> None:
    """Otherwise two configurations write into one folder."""
    names = [resolved(path).name for path in FILES if not path.stem.startswith("base_")]
    assert len(set(names)) == len(names)
