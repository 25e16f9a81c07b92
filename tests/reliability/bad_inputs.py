"""Inputs that must be refused, made from a number: bad_input(place, n) writes what is needed and returns the command's words.

`place` is a folder made by `prepare`: a text, a finished run in out/, a tokenizer in tok/, a config. Whatever is generated here is
wrong by construction, never by asking llmbuilder whether it is.
"""
import dataclasses
import json
import math
import random
import shutil
import string
from typing import get_type_hints

import faults

PROSE = ("The harbour was quiet in the early morning, and the boats lay close together on the grey water. "
         "When the wind came, the boats moved against the wall, and the keeper counted the ropes once more.\n")
SMALL = ["--vocab-size", "300", "--block-size", "16", "--preset", "tiny", "--epochs", "1"]
TRAIN = ["train", "model", "--data", "text.txt", "--output", "new", *SMALL]


def prepare(place, call):
    "Fill a folder; `call` runs the command and returns its exit code."
    (place / "text.txt").write_text(PROSE * 6, encoding="utf-8")
    assert call("train", "model", "--data", "text.txt", "--output", "out", *SMALL) == 0
    assert call("config", "create", "good.json", "--preset", "tiny") == 0
    shutil.copytree(place / "out" / "tokenizer", place / "tok")
    (place / "bad").mkdir()


def bad_input(place, number):
    "Returns (kind, words): the command line to be refused. Files it needs are in place/bad afterwards."
    rng = random.Random(number)
    bad = place / "bad"
    shutil.rmtree(bad, ignore_errors=True)
    bad.mkdir()
    kind = rng.choices(list(KINDS), [weight for weight, _ in KINDS.values()])[0]
    return kind, [str(word) for word in KINDS[kind][1](place, bad, rng)]


# ------------------------------------------------------------------------------------------------------------- texts
def noise(rng, n=400):
    return rng.randbytes(n)


def bad_text(place, bad, rng):
    "Files that are no text, and places where there is none."
    path = bad / rng.choice(["text.txt", "a text.txt", "tëxt.txt", "notes.md"])
    accents = (PROSE * rng.randint(1, 3)).replace("a", "é")
    cut = rng.randrange(1, 60)
    content = {
        "empty": b"", "nul": accents.encode()[:cut] + b"\0" + PROSE.encode(), "noise": b"\xff\xfe\x00" + noise(rng),
        "latin-1": accents.encode("latin-1"), "utf-16": accents.encode("utf-16"), "utf-32": accents.encode("utf-32"),
        "utf-16 without a mark": accents.encode("utf-16-le"), "cut inside a letter": PROSE.encode() + "é".encode()[:1],
        "a stray byte": PROSE.encode()[:cut] + bytes([rng.randrange(0x80, 0xC0)]) + PROSE.encode(),
        "a surrogate": PROSE.encode() + b"\xed\xa0\x80", "png": b"\x89PNG\r\n\x1a\n" + noise(rng), "gzip": b"\x1f\x8b\x08" + noise(rng),
        "overlong": PROSE.encode() + b"\xc0\xaf", "pickle": b"\x80\x04\x95" + noise(rng), "zip": b"PK\x03\x04" + noise(rng),
    }
    jsonl = {
        "broken": '{"text": "good"}\n{"text": ', "no field": '{"title": "x"}\n', "a number": '{"text": 3}\n', "a list": "[1, 2]\n",
        "words": "hello\n", "nan": "NaN\n", "a lone surrogate": '{"text": "\\ud800"}\n',
    }
    what = rng.randrange(10)
    if what < 6:
        path.write_bytes(content[rng.choice(sorted(content))])
    elif what < 8:
        path = bad / "text.jsonl"
        path.write_text(jsonl[rng.choice(sorted(jsonl))], encoding="utf-8")
    else:
        (bad / "folder").mkdir()
        (bad / "folder" / "page.html").write_text("<p>no text file</p>")
        (bad / "page.docx").write_bytes(b"PK\x03\x04\0" + noise(rng))
        path = rng.choice([bad / "missing.txt", bad / "folder", bad / "*.txt", bad / "page.docx",
                           bad / ("x" * 300), bad / "nul\\..\\missing.txt", ""])
    if rng.random() < 0.3:
        return ["train", "tokenizer", "--data", path, "--output", "new-tokenizer"]
    more = ["text.txt"] if what < 8 and rng.random() < 0.3 and path.read_bytes() else []
    return ["train", "model", "--data", path, *more, "--output", "new", *SMALL]


# ----------------------------------------------------------------------------------------------------------- configs
def settings():
    "Every setting: (group, name, type hint, default)."
    from llmbuilder import config

    for group, cls in config.SECTIONS.items():
        hints = get_type_hints(cls)
        for field in dataclasses.fields(cls):
            yield group, field.name, hints[field.name], field.default


def wrong_value(rng, hint, default):
    "A value that this setting cannot have, whatever its limits."
    odd = [[1], {"a": 1}, [], {}]
    if isinstance(default, bool):
        return rng.choice([*odd, "maybe", -7.5])
    if isinstance(default, int):
        return rng.choice([*odd, "abc", "16", "", math.nan, 2.5, -math.inf, True, 10**30])
    if isinstance(default, float):
        return rng.choice([*odd, "abc", "0.5", "", math.nan, math.inf, -math.inf, True, -5.0])
    if isinstance(default, str):
        return rng.choice([*odd, 7, 2.5, True])
    return rng.choice([[1, {"a": []}], {"a": 1}, math.nan, -math.inf])


def as_toml(settings):
    lines = [f"{k} = {toml_value(v)}" for k, v in settings.items() if not isinstance(v, dict) or not v]
    for group, values in settings.items():
        if isinstance(values, dict) and values:
            lines += [f"[{group}]", *(f"{k} = {toml_value(v)}" for k, v in values.items())]
    return "\n".join(lines) + "\n"


def toml_value(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {toml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return {"inf": "inf", "-inf": "-inf", "nan": "nan"}.get(str(value)) or json.dumps(value)


def typo(rng, word):
    "The word with a letter doubled, lost or changed; never the word itself."
    i = rng.randrange(len(word))
    return rng.choice([word[:i] + word[i] + "q" + word[i:], word[:i] + "q" + word[i + 1:], word + "s_", "x" + word])


def bad_config(place, bad, rng):
    "Files with one setting that is wrong, or that are no config."
    everything = [s for s in settings() if s[1] not in ("wandb_project", "device", "stop", "extensions", "text_field")]
    group, name, hint, default = rng.choice(everything)
    ending = rng.choice([".json", ".toml", ".yaml"])
    what = rng.randrange(10)
    if what < 5:
        data = {group: {name: wrong_value(rng, hint, default)}}
    elif what < 7:
        data = {group: {typo(rng, name): default if default is not None else 1}}
    else:
        data = rng.choice([{typo(rng, group): {}}, {group: rng.choice([3, "x", [1]])}, {"model": {"embedding_dim": 33, "num_heads": 2}},
                           {"model": {"num_heads": 4, "num_kv_heads": 3}}, {"model": {"num_layers": 10**9}}, {"vocab_size": -1},
                           {"model": {"vocab_size": 300}, "tokenizer": {"vocab_size": 400}}, {"block_size": "long"}])
    path = bad / f"c{ending}"
    text = {".json": lambda: json.dumps(data), ".toml": lambda: as_toml(data), ".yaml": lambda: yaml_text(data)}[ending]()
    if what == 9:
        path, text = broken_config(bad, rng, ending)
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    if what == 8 and rng.random() < 0.3:
        path = rng.choice([bad / "missing.json", bad, bad / "config.ini", place / "text.txt"])
    return rng.choice([["config", "validate", path], ["config", "show", "--config", path], [*TRAIN, "--config", path]])


def yaml_text(data):
    import yaml

    return yaml.safe_dump(data)


def broken_config(bad, rng, ending):
    good = '{"training": {"batch_size": 4, "num_epochs": 2}}'
    texts = {
        ".json": [good[:rng.randrange(1, len(good))], "", "[]", "3", "null", '"x"', "{'a': 1}", '{"training": {}, "training": {}}', "NaN",
                  "[" * 5000, noise(rng, 50)],
        ".toml": ["[training\nbatch_size = 4", "batch_size 4", "[training]\nbatch_size = 4\nbatch_size = 5", "x = {", "\x00", b"\xff\xfe"],
        ".yaml": ["training: [", "- 1\n- 2\n", "a: b: c", "training: {batch_size: 4, batch_size: 5}", "!!python/object/apply:os.getcwd []",
                  "training: &a [*a]", "\tx: 1", "3", b"\xff\xfe\x00"],
    }
    return bad / f"broken{ending}", rng.choice(texts[ending])


# ------------------------------------------------------------------------------------------------------------- flags
FLAGS = ["--epochs", "--batch-size", "--vocab-size", "--block-size", "--training.learning-rate", "--training.warmup-steps",
         "--model.num-layers", "--model.embedding-dim", "--model.dropout", "--training.seed", "--training.max-steps",
         "--tokenizer.character-coverage", "--training.weight-decay", "--generation.temperature"]
CHOICES = ["--training.optimizer", "--training.scheduler", "--model.norm", "--model.mlp", "--training.mixed-precision",
           "--tokenizer.model-type", "--data.newlines"]
SAMPLING = {"--temperature": ["-1", "nan", "inf", "hot"], "--top-k": ["0", "-5", "1.5", "many"], "--top-p": ["0", "1.5", "-0.1", "nan"],
            "--min-p": ["1.5", "-1", "nan"], "--max-new-tokens": ["-1", "x", "1e3", "10000000000"], "--repetition-penalty": ["0", "-1", "nan"],
            "--seed": ["-1", "x"], "--device": ["tpu9", "cuda:99", "", "cpu cpu"], "--tokenizer": ["missing", "text.txt", "bad"]}


def bad_flags(place, bad, rng):
    "Command lines with one mistake."
    what, junk = rng.randrange(12), ["abc", "nan", "1,5", "", "0x10", "--", "1e999", "½", "-3", "[]"]
    if what == 0:
        return [*TRAIN, typo(rng, rng.choice(FLAGS)), "3"]
    if what in (1, 2):
        return [*TRAIN, rng.choice(FLAGS), rng.choice(junk)]
    if what == 3:
        return [*TRAIN, rng.choice(CHOICES), rng.choice(["nonsense", "", "3", "adamw,sgd", "BPE?"])]
    if what == 4:
        return rng.choice([[*TRAIN, "--resume", "--overwrite"], [*TRAIN, "stray"], [*TRAIN, "--epochs"], TRAIN[:2], ["train"],
                           [*TRAIN[:4], "--output", "text.txt", *SMALL], [*TRAIN, "--preset", "../tiny"], [*TRAIN, "--preset", "huge"],
                           [*TRAIN, "--preset", str(place / "good.json")], ["train", "model", "--data", "--output", "new"],
                           [*TRAIN, "--tokenizer", "text.txt"], [*TRAIN, "--training.device", "cuda:99"]])
    if what == 5:
        word = rng.choice(["trian", "genrate", "chekpoint", "config crate", "model", "checkpoint", "../x", "--", "train tokenizr", "\x00", "💥"])
        return [*word.split(" "), "--data", "text.txt"]
    if what in (6, 7, 8):
        flag = rng.choice(sorted(SAMPLING))
        return ["generate", "--model", "out", "--prompt", "The", flag, rng.choice(SAMPLING[flag])]
    if what == 9:
        return rng.choice([["generate", "--model", "out"], ["generate", "--prompt", "x", "--model", "missing"],
                           ["generate", "--prompt", "x", "--model", "text.txt"], ["generate", "--prompt", "x", "--model", "tok"],
                           ["generate", "--prompt", "x", "--model", "bad"], ["generate", "--prompt", "x", "--model", "."]])
    if what == 10:
        return rng.choice([["info", "missing"], ["info", "text.txt"], ["checkpoint", "list", "missing"], ["checkpoint", "list", "text.txt"],
                           ["checkpoint", "verify", "missing"], ["checkpoint", "verify", "tok"],
                           ["checkpoint", "verify", "text.txt"], ["checkpoint", "verify"], ["train", "resume", "missing"],
                           ["train", "resume", "tok"], ["train", "resume", "text.txt"], ["train", "resume", "out", "--epochs", "0"],
                           ["train", "resume", "out", "--data", "missing.txt", "--epochs", "3"]])
    return rng.choice([["config", "create", "good.json"], ["config", "create", "bad/x.ini"], ["config", "create", "bad/x.json", "--preset", "no"],
                       ["train", "tokenizer", "--data", "text.txt", "--output", "tok"],
                       ["train", "tokenizer", "--data", "text.txt", "--output", "text.txt"],
                       ["train", "tokenizer", "--data", "text.txt", "--output", "new", "--vocab-size", "3"],
                       ["train", "model", "--data", "text.txt", "--output", "out", *SMALL]])


# -------------------------------------------------------------------------------------------------------- checkpoints
def bad_checkpoint(place, bad, rng):
    "Checkpoints that are damaged, inconsistent or dangerous."
    import torch

    good = place / "out" / "checkpoints" / "latest_checkpoint.pt"
    path, what = bad / rng.choice(["x.pt", "latest_checkpoint.pt", "ünïcode name.pt"]), rng.randrange(8)
    shutil.copy(good, path)
    if what == 0:
        faults.truncate(path, rng.choice([0, -1, rng.random() * 0.999]))
    elif what == 1:
        faults.flip(path, faults.tensor_offset(path) + rng.randrange(-20, 20))
    elif what == 2:
        path.write_bytes(noise(rng, rng.randrange(1, 3000)))
    elif what == 3:
        path.unlink()
        state = torch.load(good, weights_only=True)
        files = faults.evil_pickles(bad, place / "MARKER", state)
        path = files[rng.choice(sorted(files))]
    elif what == 4:
        data = bytearray(path.read_bytes())
        at = rng.randrange(len(data))
        path.write_bytes(data[:at] + noise(rng, 7) + data[at:])  # bytes slipped in
        if at > len(data) - 60:
            path.write_bytes(data[: len(data) // 3])
    else:
        state = torch.load(good, weights_only=True)
        table = faults.sabotage()
        torch.save(faults.change(state, *table[rng.choice(sorted(table))]), path)
    return rng.choice([["checkpoint", "verify", path], ["info", path], ["generate", "--model", path, "--prompt", "The"],
                       [*TRAIN, "--resume", path], ["checkpoint", "verify", bad], ["generate", "--model", bad, "--prompt", "The"]])


def bad_tokenizer(place, bad, rng):
    "Tokenizers that are damaged, or not this model's."
    folder, what = bad / "tokenizer", rng.randrange(6)
    shutil.copytree(place / "tok", folder)
    model = folder / "tokenizer.model"
    if what == 0:
        faults.truncate(model, rng.choice([0, rng.random() * 0.98]))
    elif what == 1:
        model.write_bytes(noise(rng, rng.randrange(1, 2000)))
    elif what == 2:
        faults.flip(model, rng.randrange(model.stat().st_size))  # the fingerprint beside it says another one
    elif what == 3:
        model.write_text("".join(rng.choices(string.ascii_letters, k=300)))
    elif what == 4:
        model.unlink()
        model.mkdir()
    else:
        (folder / "tokenizer_config.json").write_text(rng.choice(['{"fingerprint": 3}', '{"fingerprint": "' + "0" * 64 + '"}']))
    return rng.choice([["generate", "--model", "out", "--prompt", "The", "--tokenizer", folder], ["info", folder],
                       [*TRAIN, "--tokenizer", folder]])


KINDS = {"text": (30, bad_text), "config": (25, bad_config), "flags": (20, bad_flags), "checkpoint": (20, bad_checkpoint),
         "tokenizer": (5, bad_tokenizer)}
