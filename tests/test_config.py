"""Settings under property-based testing: files come back exactly, and no wrong value of any field gets in."""

import dataclasses
import math
import os
import stat
import subprocess
import sys
from typing import Annotated, Literal, Union, get_args, get_origin

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llmbuilder import config as c
from llmbuilder.config import Config, ConfigError, load_config, presets

FIELDS = [(cls, name) for cls in c.SECTIONS.values() for name in c._hints(cls)]
IDS = [f"{cls._path}.{name}" for cls, name in FIELDS]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)  # every Unicode scalar value
ENDINGS = "json", "toml", "yaml", "yml"
KEYS = st.sampled_from([*c.SECTIONS, "vocab_size", "batch_size", "stop", "x"])
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def values(hint):
    "Strategy for the right values of a type."
    origin = get_origin(hint)
    if origin is Annotated:
        r = hint.__metadata__[0]
        if hint.__origin__ is int:
            return st.integers(r.low, r.high)
        high = {} if r.high == math.inf else {"max_value": r.high, "exclude_max": ")" in r.open}
        return st.floats(r.low, exclude_min="(" in r.open, allow_nan=False, allow_infinity=False, **high)
    if origin in (Union, c.UnionType):
        return st.one_of(*map(values, get_args(hint)))
    if origin is Literal:
        return st.sampled_from(get_args(hint))
    if origin is tuple:
        return st.lists(TEXT, max_size=4).map(tuple)
    return {bool: st.booleans(), str: TEXT, c.NoneType: st.none()}[hint]


# sizes stay where the rules between settings hold; every other field takes all of its range
SIZES = {
    "vocab_size": st.integers(1, 10**5), "max_seq_length": st.integers(1, 10**4), "num_layers": st.integers(1, 50),
    "embedding_dim": st.integers(1, 20).map(lambda n: 48 * n), "num_heads": st.sampled_from([1, 2, 3, 4, 6, 12]),
    "num_kv_heads": st.sampled_from([None, 1]), "head_dim": st.sampled_from([None, 2, 64]),
    "hidden_dim": st.none() | st.integers(1, 9999),
}  # fmt: skip
EXTENSIONS = st.lists(
    TEXT.filter(lambda t: t and not set(t) & set("\\/\n")).map(lambda t: "." + t), min_size=1, max_size=3
)


@st.composite
def configs(draw):
    "Any valid Config."
    drawn = {path: {n: draw(values(h)) for n, h in c._hints(cls).items()} for path, cls in c.SECTIONS.items()}
    drawn["model"].update({name: draw(s) for name, s in SIZES.items()})
    drawn["tokenizer"]["vocab_size"] = draw(st.integers(1, drawn["model"]["vocab_size"]))
    drawn["data"]["extensions"] = draw(EXTENSIONS)
    drawn["generation"]["stop"] = tuple(filter(None, drawn["generation"]["stop"]))
    return Config(**drawn)


def complaint(call, *args, **kw):
    "The message of the ConfigError that a call raises: one line, one sentence."
    with pytest.raises(ConfigError) as caught:
        call(*args, **kw)
    message = str(caught.value)
    assert "\n" not in message and message[-1] in ".?" and len(message) < 700
    return message


# ---- files


@pytest.mark.parametrize("ending", ENDINGS[:3])
@QUICK
@given(config=configs())
@example(config=Config())
def test_round_trip(tmp_path, ending, config):
    path = config.save(tmp_path / f"c.{ending}")
    again = load_config(path)
    assert again == config
    assert again.to_dict() == config.to_dict()
    assert repr(again) == repr(config)  # 1 and 1.0 are equal, and not the same


@pytest.mark.parametrize("ending", ENDINGS[:3])
@QUICK
@given(text=TEXT)
@example(text="no")
@example(text="3e-4")
@example(text="0x10")
@example(text="2026-11-23")
@example(text="none")
@example(text="1:30")
@example(text="\u2028\x85\x7f\x00\\\"'")
@example(text="# not a comment")
def test_any_text_comes_back(tmp_path, ending, text):
    config = load_config(wandb_project=text, stop=(text or "-",))
    assert load_config(config.save(tmp_path / f"c.{ending}")) == config


@pytest.mark.parametrize("name", presets())
@pytest.mark.parametrize("ending", ENDINGS)
def test_presets_come_back(tmp_path, name, ending):
    assert load_config(presets()[name].save(tmp_path / f"c.{ending}")) == presets()[name]


@pytest.mark.parametrize("value", ["3e-4", "3E-4", "3.0e-4", "0.0003", "+3e-4", ".0003"])
def test_yaml_numbers_without_a_dot(tmp_path, value):
    path = tmp_path / "c.yaml"
    path.write_text(f"training:\n  learning_rate: {value}\n")
    assert load_config(path).training.learning_rate == 3e-4


def test_yaml_words_that_are_no_booleans(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("training:\n  mixed_precision: no\n  shuffle: false\ndata:\n  unicode_form: null\n")
    config = load_config(path)
    assert (config.training.mixed_precision, config.training.shuffle, config.data.unicode_form) == ("no", False, None)
    path.write_text("training:\n  shuffle: no\n")
    assert "training.shuffle must be True or False" in complaint(load_config, path)


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.json", b"", ["a.json", "line 1"]),
        ("a.json", b'{"training": {\n "batch_size": 4,,\n}}', ["a.json", "line 2"]),
        ("a.json", b"[1]", ["a.json", "[1]"]),
        ("a.json", b'{"vocab_size": 1, "vocab_size": 2}', ["a.json", "vocab_size", "twice"]),
        ("a.json", b"[" * 100_000, ["a.json"]),
        ("a.json", b'{"training": {"batch_size": ' + b"9" * 5000 + b"}}", ["a.json"]),
        ("a.json", b'{"training": {"learning_rate": 1e999}}', ["training.learning_rate", "inf"]),
        ("a.json", b'{"training": {"batch_size": "16"}}', ["training.batch_size", '"16"', "without quotes"]),
        ("a.toml", b"[training]\nbatch_size = 4\nbatch_size = 5", ["a.toml", "line 3"]),
        ("a.toml", b"[training]\nseed = 2026-11-23", ["training.seed"]),
        ("a.yaml", b"training:\n  batch_size: 4\n  batch_size: 5", ["a.yaml", "line 3", "twice"]),
        ("a.yaml", b"training:\n\tbatch_size: 4", ["a.yaml", "line 2"]),
        ("a.yaml", b"training: !!python/object/apply:os.system ['true']", ["a.yaml", "line 1"]),
        ("a.yaml", b"training: {[1]: 2}", ["a.yaml"]),
        ("a.yaml", b"training: &a {batch_size: *a}", ["training.batch_size"]),
        ("a.yaml", b"a: 1\n---\nb: 2", ["a.yaml", "line"]),
        ("a.yaml", b"5: 1", ["a.yaml", "5"]),
        ("a.json", '{"training": {"device": "é"}}'.encode("latin-1"), ["a.json", "line 1", "UTF-8"]),
        ("a.json", '{"training": {}}'.encode("utf-16"), ["a.json", "UTF-8"]),
        ("a.json", b"\x00" * 100, ["a.json"]),
        ("a.json", b" " * 2_000_000, ["a.json", "bytes"]),
        ("a.txt", b"{}", [".txt", ".toml"]),
        ("a", b"{}", [".toml"]),
    ],
)
def test_damaged_files(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    message = complaint(load_config, path)
    for word in words:
        assert word in message


def test_missing_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "nowhere.json" in complaint(load_config, "nowhere.json")
    assert "folder" in complaint(load_config, tmp_path)
    assert 'preset="tiny"' in complaint(load_config, "tiny")
    complaint(load_config, "x" * 5000)
    complaint(load_config, "a\0b.json")


def test_byte_order_mark_and_empty_yaml(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf{}")
    (tmp_path / "b.yaml").write_bytes(b"# nothing yet\n")
    assert load_config(tmp_path / "a.json") == load_config(tmp_path / "b.yaml") == Config()


def test_saving_refuses_what_it_could_not_read(tmp_path):
    complaint(Config().save, tmp_path / "c.ini")
    config = Config()
    config.model.num_heads = 3
    complaint(config.save, tmp_path / "c.json")
    assert list(tmp_path.iterdir()) == []


# ---- every field


@pytest.mark.parametrize("cls, name", FIELDS, ids=IDS)
def test_no_wrong_value_gets_in(cls, name):
    "Row 35, for every field there is."
    for wrong in float("nan"), float("inf"), -float("inf"), -1, -0.5, object(), {}, b"x", {1}, [1], 10**400, "\ud800":
        section = cls()
        before = section.to_dict()
        for call, args, kw in (
            (setattr, (section, name, wrong), {}),
            (cls, (), {name: wrong}),
            (cls.from_dict, ({name: wrong},), {}),
        ):
            assert complaint(call, *args, **kw).startswith(f"{cls._path}.{name} must be ")
        complaint(Config.from_dict, {cls._path: {name: wrong}})
        complaint(load_config, **{f"{cls._path}.{name}": wrong})
        assert section.to_dict() == before


@pytest.mark.parametrize("cls, name", FIELDS, ids=IDS)
def test_numbers_in_quotes(cls, name):
    hint = c._hints(cls)[name]
    takes_text = "str" in str(hint)
    for wrong in "16", "0.5", "true", "":
        if not takes_text:
            assert f"{cls._path}.{name}" in complaint(setattr, cls(), name, wrong)
    if hint is not bool and "bool" not in str(hint):
        complaint(setattr, cls(), name, True)


@pytest.mark.parametrize("cls, name", FIELDS, ids=IDS)
def test_misspelt_names(cls, name):
    for wrong in name[:-1] + "x", name.upper(), name.replace("_", "-") + "s":
        for call, args, kw in (
            (setattr, (cls(), wrong, 1), {}),
            (cls, (), {wrong: 1}),
            (cls.from_dict, ({wrong: 1},), {}),
        ):
            assert "is not a setting" in complaint(call, *args, **kw)
    assert f"did you mean {cls._path}.{name}?" in complaint(cls.from_dict, {name.upper(): 1})
    assert f"{cls._path}." in complaint(Config.from_dict, {cls._path: {name + "z": 1}})


@QUICK
@given(
    st.sampled_from(FIELDS),
    st.binary()
    | st.complex_numbers()
    | st.decimals()
    | st.fractions()
    | st.text()
    | st.floats()
    | st.integers()
    | st.recursive(st.none() | st.booleans(), st.lists),
)
def test_any_value_is_stored_exactly_or_refused(field, value):
    cls, name = field
    section = cls()
    try:
        setattr(section, name, value)
    except ConfigError:
        assert section == cls()
    else:
        stored = getattr(section, name)
        assert type(stored) in (int, float, str, bool, tuple, type(None))
        if isinstance(stored, tuple):
            assert stored in ((value,), tuple(value))
        elif isinstance(stored, float):
            assert stored == float(value)  # a fraction or a huge whole number is rounded
        else:
            assert stored == value or (stored, value) == (None, "none")


@QUICK
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
                    lambda s: st.lists(s, max_size=3) | st.dictionaries(
                        KEYS | st.integers(), s, max_size=3), max_leaves=8))  # fmt: skip
def test_from_dict_never_fails_otherwise(settings_):
    for cls in Config, *c.SECTIONS.values():
        try:
            cls.from_dict(settings_).validate()
        except ConfigError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("cls, name", FIELDS, ids=IDS)
def test_every_field_is_explained_on_one_short_line(cls, name):
    "The comment is the command line's help."
    meaning = c._comments(cls)[name]
    assert 3 < len(meaning) < 100 and not meaning.endswith(".")


@pytest.mark.parametrize("cls", c.SECTIONS.values(), ids=list(c.SECTIONS))
def test_help_of_the_command_line(cls, capsys):
    tyro = pytest.importorskip("tyro")
    with pytest.raises(SystemExit) as done:
        tyro.cli(cls, args=["--help"])
    assert done.value.code == 0
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name, meaning in c._comments(cls).items():
        if name in c._hints(cls):
            assert f"--{name.replace('_', '-')}" in words and meaning in words


# ---- presets and layers


@pytest.mark.parametrize(
    "name",
    ["../tiny", "/etc/passwd", "tiny.json", "./tiny", "C:\\tiny", "", "TINY ", None.__class__, 5, ["tiny"], "\0"],
)
def test_a_preset_is_a_name_never_a_path(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Config().save("tiny.json")
    assert "there is no preset" in complaint(load_config, preset=name)


def test_presets_are_fresh_and_of_one_vocabulary():
    assert set(presets()) >= {"tiny", "cpu_small", "gpu_medium", "gpu_large", "inference"}
    first = presets()["tiny"]
    first.training.batch_size = 99
    assert presets()["tiny"].training.batch_size != 99
    general = [p for name, p in presets().items() if name != "shakespeare"]  # that one is a recipe for characters
    assert all(p.vocab_size == p.tokenizer.vocab_size == 8000 for p in general)


def test_preset_notice(capsys):
    load_config(preset="cpu_small")
    out, err = capsys.readouterr()
    assert out == "" and "cpu_small" in err and "3.3 M parameters" in err and err.count("\n") == 1


def test_flags_over_file_over_preset(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("[training]\nbatch_size = 7\nlearning_rate = 0.5\n[model]\nvocab_size = 900\n")
    config = load_config(path, "tiny", batch_size=3, model={"dropout": 0.5})
    assert (config.training.batch_size, config.training.learning_rate) == (3, 0.5)
    assert (config.model.dropout, config.model.embedding_dim) == (0.5, presets()["tiny"].model.embedding_dim)
    assert config.model.vocab_size == config.tokenizer.vocab_size == 900


def test_two_names_for_one_setting():
    assert Config.from_dict({"block_size": 64, "model": {"max_seq_length": 64}}).block_size == 64
    assert "twice" in complaint(Config.from_dict, {"block_size": 64, "model": {"max_seq_length": 65}})
    assert "training.seed" in complaint(load_config, seed=3)
    assert (
        Config.from_dict({"model": {"vocab_size": 900}, "tokenizer": {"vocab_size": 500}}).tokenizer.vocab_size == 500
    )


# ---- sizes


@pytest.mark.parametrize(
    "sizes, words",
    [
        ({"num_layers": 10**9}, ["model.num_layers", "1,000"]),
        ({"num_layers": -1}, ["model.num_layers"]),
        ({"embedding_dim": 2**17, "num_layers": 1000, "num_heads": 1024}, ["parameters"]),
        ({"vocab_size": 2**24, "embedding_dim": 2**17}, ["parameters"]),
        ({"hidden_dim": 10**12}, ["model.hidden_dim"]),
        ({"embedding_dim": 100, "num_heads": 3}, ["embedding_dim", "num_heads", "102"]),
        ({"num_heads": 4, "num_kv_heads": 3}, ["num_kv_heads", "1, 2, 4"]),
        ({"embedding_dim": 60, "num_heads": 4}, ["odd", "learned"]),
        ({"head_dim": 7}, ["odd"]),
        ({"embedding_dim": 2, "num_heads": 4}, ["embedding_dim"]),
    ],
)
def test_absurd_sizes(sizes, words):
    message = complaint(c.ModelConfig, **sizes)
    for word in words:
        assert word in message


# ---- assignment, freezing, copies


def test_frozen_settings():
    model = c.ModelConfig()
    model.freeze(c.STRUCTURAL, "already built")
    assert complaint(setattr, model, "num_layers", 6) == "model.num_layers cannot change from 4 to 6: already built."
    model.num_layers = 4
    model.gradient_checkpointing = 2
    model.dropout = 0.5
    copy = dataclasses.replace(model, num_layers=6)
    copy.num_layers = 8
    assert model == c.ModelConfig(gradient_checkpointing=2, dropout=0.5)
    model.unfreeze()
    model.num_layers = 6


def test_properties_and_wrong_names_of_a_config():
    config = Config()
    config.vocab_size, config.block_size = 300, 32
    assert (config.model.vocab_size, config.tokenizer.vocab_size, config.model.max_seq_length) == (300, 300, 32)
    assert "training.batch_size" in complaint(setattr, config, "batch_size", 3)
    assert "training" in complaint(setattr, config, "trainig", {})
    assert "follows from" in complaint(setattr, config, "num_parameters", 3)
    complaint(setattr, config, "model", None)
    complaint(setattr, config, "vocab_size", 0)
    assert config.vocab_size == 300


def test_the_table_escapes_html():
    bad = "<script>alert(1)</script>|`*_[x](y)"
    table = c.TrainingConfig(wandb_project=bad, device=bad)._repr_markdown_()
    assert "<" not in table and "`" not in table and "[" not in table
    assert all(line.count("|") == 4 for line in table.splitlines())


# ---- writing


def test_atomic_write_leaves_nothing_behind(tmp_path):
    path = tmp_path / ("n" * 255)  # the longest name there is
    c.atomic_write_text(path, "old\r\n")
    assert path.read_bytes() == b"old\r\n"
    with pytest.raises(KeyboardInterrupt), c.atomic_open(path) as file:
        file.write(b"new")
        raise KeyboardInterrupt
    with pytest.raises(UnicodeEncodeError):
        c.atomic_write_text(path, "\ud800")
    with pytest.raises(OSError):
        c.atomic_write_text(tmp_path / "no folder" / "x", "new")
    assert path.read_text() == "old\n" and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="permissions and links as POSIX has them")
def test_atomic_write_permissions_and_links(tmp_path):
    old = os.umask(0o027)
    try:
        c.atomic_write_text(tmp_path / "a", "1")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    (tmp_path / "link").symlink_to("a")
    c.atomic_write_text(tmp_path / "link", "2")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "a").read_text() == "2"


def test_importing_config_is_cheap():
    heavy = {"torch", "numpy", "yaml", "tomllib", "IPython", "tyro"}
    code = f"import sys, llmbuilder.config; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
