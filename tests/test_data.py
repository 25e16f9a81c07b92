"""From files to batches: what is read, what is refused, and that every token is a target exactly once."""
import gzip
import json
import os
import pickle
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llmbuilder import data as d
from llmbuilder.config import Config, DataConfig
from llmbuilder.data import DataError, DataReport, TextDataset, TokenFile, encode_documents, find_files, load_documents
from llmbuilder.tokenizer import Tokenizer, TokenizerError, train_tokenizer

QUICK = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(scope="module")
def tokenizer(text):
    return train_tokenizer([text], vocab_size=400)


@pytest.fixture
def notices(monkeypatch):
    "What the user was told."
    said = []
    monkeypatch.setattr(d, "notify", said.append)
    monkeypatch.setattr("llmbuilder.tokenizer.notify", said.append)
    return said


def complaint(call, *args, **kw):
    "The message of the DataError that a call raises: one line that ends with a remedy."
    with pytest.raises(DataError) as caught:
        result = call(*args, **kw)
        list(result) if hasattr(result, "__next__") else result
    message = str(caught.value)
    assert "\n" not in message and message.endswith((".", ".txt", ".txt'")) and (";" in message or ":" in message)
    return message


def make(folder, *names, content="Some text.\n"):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}: {content}", encoding="utf-8")


def names(files, folder):
    return [file.relative_to(folder).as_posix() for file in files]


# ---- which files (rows 26, 33, 34)


def test_case_26_empty_missing_and_wrong_places(folder, tokenizer):
    (folder / "empty.txt").touch()
    (folder / "empty").mkdir()
    make(folder, "other/a.md", "other/b.md", "other/c.pdf", "other/README")
    assert "no text in empty.txt" in complaint(TextDataset, "empty.txt", 8, tokenizer)
    assert "empty has no files" in complaint(TextDataset, "empty", 8, tokenizer)
    assert "No file or folder nowhere.txt" in complaint(TextDataset, "nowhere.txt", 8, tokenizer)
    assert "No file or folder *.csv" in complaint(find_files, "*.csv")
    message = complaint(find_files, "other")
    assert "No .txt files in other" in message and all(m in message for m in ("2 .md", "1 .pdf", "1 without ending"))
    assert "other is a folder" in complaint(d.read_text, "other")
    assert "Cannot read nowhere.txt" in complaint(d.read_text, "nowhere.txt")
    assert "list of files is empty" in complaint(find_files, [])
    assert "No file or folder" in complaint(find_files, "a\0b")
    assert "no text in blank.txt" in complaint(TextDataset, _write("blank.txt", b" \n\t\n"), 8, tokenizer)


def _write(name, content):
    Path(name).write_bytes(content)
    return name


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_case_26_no_permission(folder):
    make(folder, "closed.txt", "sub/a.txt")
    (folder / "closed.txt").chmod(0)
    assert "ermission" in complaint(d.read_text, "closed.txt")
    (folder / "sub").chmod(0)
    assert "ermission" in complaint(find_files, ".")
    (folder / "sub").chmod(0o755)


def test_case_26_a_failing_disk_is_an_error_with_the_files_name(folder, monkeypatch):
    make(folder, "a.txt")

    def fail(*args, **kw):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", fail)
    assert "Cannot read a.txt (Permission denied)" in complaint(d.read_text, "a.txt")
    assert "Cannot read a.txt (Permission denied)" in complaint(d.fingerprint_files, ["a.txt"])
    monkeypatch.setattr(os, "scandir", fail)
    assert "Permission denied" in complaint(find_files, ".")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_case_26_a_pipe_is_no_file(folder):
    os.mkfifo("pipe")
    assert "neither a file nor a folder" in complaint(find_files, "pipe")


def test_one_empty_file_among_others_is_left_out_with_a_notice(folder, tokenizer, notices):
    make(folder, "texts/a.txt", "texts/b.txt")
    (folder / "texts/c.txt").touch()
    assert TextDataset("texts", 8, tokenizer).report.too_short == 1
    assert notices == ["data: 2 of 3 documents, 48 of 48 bytes; 0 cleaned; left out: 1 too short"]


def test_a_folder_means_its_text_files_in_a_stable_order(folder):
    make(folder, "b.txt", "a.txt", "B.TXT", "c/d/e.txt", "c/a.txt", "x.md", ".hidden.txt", ".git/a.txt", "~.txt")
    found = ["B.TXT", "a.txt", "b.txt", "~.txt", "c/a.txt", "c/d/e.txt"]
    assert names(find_files(folder), folder) == found
    assert names(find_files(str(folder) + os.sep), folder) == found
    assert names(find_files(folder, DataConfig(extensions=(".md",))), folder) == ["x.md"]
    both = names(find_files(folder, Config(data={"extensions": [".MD", ".txt"]})), folder)
    assert both == [*found[:3], "x.md", *found[3:]]
    assert names(find_files(f"{folder}/**/a.txt"), folder) == ["a.txt", "c/a.txt"]
    assert find_files("x.md") == [Path("x.md")]
    assert names(find_files([folder / "c", folder / "c/a.txt", folder / "b.txt"]), folder) == ["c/a.txt", "c/d/e.txt", "b.txt"]


def test_case_33_the_output_folder_is_never_data(folder):
    make(folder, "data/a.txt", "data/output/x.txt", "data/old run/deep/y.txt", "data/old run/run.json", "data/tok/tokenizer.model")
    make(folder, "data/tok/z.txt")
    expected = ["data/a.txt"]
    assert names(find_files(folder / "data", exclude=[folder / "data/output"]), folder) == expected
    assert find_files("data", exclude=["data/../data/output"]) == [Path("data/a.txt")]
    assert find_files("data/*/*.txt", exclude=["data/output"]) == [Path("data/tok/z.txt")]
    make(folder, "data/output/run.json")
    assert names(find_files(folder / "data"), folder) == expected
    assert find_files("data", exclude=["data"]) == [Path("data/a.txt")], "data and output in one folder"


def test_case_33_a_new_file_is_noticed(folder, text):
    make(folder, "data/a.txt")
    before = d.fingerprint_files(find_files("data"))
    assert d.fingerprint_files(find_files("data")) == before
    make(folder, "data/b.txt")
    assert d.fingerprint_files(find_files("data")) != before
    (folder / "data/b.txt").unlink()
    assert d.fingerprint_files(find_files("data")) == before


@pytest.mark.parametrize("name", ["two words.txt", "größe 你好.txt", "a'b\".txt", "[x].txt", "#1.txt", "a;b.txt", "-x.txt"])
def test_case_34_names(folder, tokenizer, name):
    make(folder, name, "sub/x.txt")
    assert len(TextDataset(name, 8, tokenizer)) > 0
    assert len(TextDataset(f"sub/../{name}", 8, tokenizer)) > 0
    assert find_files(".", exclude=["sub"]) == [Path(name)]


@pytest.mark.skipif(os.sep != "/", reason="a backslash is a separator here")
def test_case_34_backslashes_as_the_guide_writes_them(folder):
    make(folder, "data/a.txt", r"odd\name.txt")
    assert find_files(r".\data\a.txt") == [Path("./data/a.txt")]
    assert find_files(r"odd\name.txt") == [Path(r"odd\name.txt")]
    assert r"data\none.txt" in complaint(find_files, r"data\none.txt")


def test_case_34_nothing_is_written_beside_the_data(folder, text):
    make(folder, "data/a.txt", content=text)
    TextDataset("data", 8)
    assert names(sorted(folder.rglob("*")), folder) == ["data", "data/a.txt"]


# ---- reading (rows 27, 28)


def test_case_27_bom_and_line_ends(folder, tokenizer):
    content = "\ufeffone\r\ntwo\n\r\nthree \ufeff\r"
    _write("a.txt", b"\xef\xbb\xbf" + content[1:].encode())
    assert d.read_text("a.txt") == content[1:]
    assert d.read_text("a.txt", {"newlines": "lf"}) == "one\ntwo\n\nthree \ufeff\n"
    dataset = TextDataset("a.txt", 8, tokenizer)
    assert tokenizer.decode(dataset.tokens) == content[1:]
    dataset = TextDataset("a.txt", 8, tokenizer, {"newlines": "lf"})
    assert tokenizer.decode(dataset.tokens) == "one\ntwo\n\nthree \ufeff\n"


@pytest.mark.parametrize(
    "content, offset, says",
    [
        ("Grüße".encode("utf-16"), 0, "iconv -f UTF-16 "),
        (b"\xfe\xff" + "Text".encode("utf-16-be"), 0, "iconv -f UTF-16 "),
        ("Some text".encode("utf-32"), 0, "iconv -f UTF-32 "),
        ("Some text".encode("utf-16-le"), 1, "iconv -f UTF-16LE"),
        ("Some text".encode("utf-16-be"), 0, "iconv -f UTF-16BE"),
        ("Ein Café".encode("latin-1"), 7, "iconv -f WINDOWS-1252"),
        (b"text \x00 text", 5, "binary"),
        (b"\x89PNG\r\n\x1a\n\0\0", 0, "binary"),
        (gzip.compress(b"text"), 1, "binary"),
        (b"%PDF-1.4\n%\xe2\xe3\xcf\xd3", 10, "binary"),
        (b"text \xed\xa0\x80", 5, "UTF-8"),  # a surrogate
        (b"text \xc0\xaf", 5, "UTF-8"),  # an overlong slash
        (b"cut \xe4\xbd", 4, "UTF-8"),
        (b"\xef\xbb\xbfx\xff", 4, "UTF-8"),
    ],
)
def test_case_28_what_is_not_utf8_is_refused(folder, tokenizer, content, offset, says):
    _write("it's text.txt", content)
    for call in d.read_text, lambda path: TextDataset(path, 8, tokenizer), lambda path: TextDataset(path, 8):
        message = complaint(call, "it's text.txt")
        assert f"it's text.txt is not UTF-8 text (byte 0x{content[offset]:02X} at offset {offset})" in message
        assert says in message


@settings(QUICK, max_examples=200)
@given(good=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), max_size=40), data=st.data())
def test_case_28_the_offset_is_right_wherever_the_file_was_cut_into_chunks(good, data):
    content = good.encode("utf-8")
    at = data.draw(st.sampled_from([len(good[:i].encode()) for i in range(len(good) + 1)]))
    bad = data.draw(st.sampled_from([b"\xff", b"\0", b"\x80", b"\xf8"]))
    content = content[:at] + bad + content[at:]
    n = data.draw(st.integers(1, len(content)))
    chunks = [content[i : i + n] for i in range(0, len(content), n)]
    message = complaint(d._decode, Path("x.txt"), chunks)
    assert f"(byte 0x{bad[0]:02X} at offset {at})" in message


@settings(QUICK, max_examples=200)
@given(text=TEXT.filter(lambda t: "\0" not in t), n=st.integers(1, 9))
@example(text="\ufeff", n=1)
@example(text="\ufeff\ufeffa", n=2)
def test_case_27_reading_in_chunks_is_reading(text, n):
    content = text.encode("utf-8")
    chunks = [content[i : i + n] for i in range(0, len(content), n)]
    assert "".join(d._decode(Path("x.txt"), chunks)) == text.removeprefix("\ufeff")


def test_a_damaged_file_in_a_folder_stops_everything(folder, tokenizer):
    make(folder, "texts/a.txt", "texts/c.txt")
    _write("texts/b.txt", b"\xff")
    assert "texts/b.txt" in complaint(TextDataset, "texts", 8, tokenizer)


# ---- jsonl


def test_jsonl(folder, tokenizer):
    rows = [{"text": "one\ntwo"}, {"text": "caf\u00e9", "n": 1}, {"text": "\U0001f600"}]
    _write("a.jsonl", ("\n".join(map(json.dumps, rows)) + "\n\n").encode())
    assert list(d.iter_documents(["a.jsonl"])) == [row["text"] for row in rows]
    dataset = TextDataset("a.jsonl", 8, tokenizer)
    assert len(dataset.starts) == 3
    assert [dataset.tokens[i] for i in dataset.starts] == [tokenizer.bos_id] * 3
    assert dataset.tokens.tolist() == sum((tokenizer.encode(row["text"], bos=True, eos=True) for row in rows), [])
    _write("b.ndjson", b'{"body": "x"}\r\n{"body": "y"}')
    assert list(d.iter_documents(["b.ndjson"], {"text_field": "body"})) == ["x", "y"]


@pytest.mark.parametrize(
    "line, says",
    [
        ('{"text": "cut', "is not JSON"),
        ('{"body": "x"}', "only body"),
        ('["text"]', "it is no object"),
        ("3", "it is no object"),
        ('{"text": 3}', "no text in the field 'text'"),
        ('{"text": null}', "no text in the field 'text'"),
        ('{"text": "\\ud800"}', "lone surrogate at character 0"),
        ("[" * 100_000, "is not JSON"),
        ("9" * 5000, "Line 3"),
    ],
)
def test_a_bad_line_of_jsonl_is_named(folder, line, says):
    _write("a.jsonl", f'{{"text": "fine"}}\n\n{line}\n'.encode())
    message = complaint(d.iter_documents, ["a.jsonl"])
    assert "Line 3 of a.jsonl" in message and says in message


# ---- cleaning

LINES = st.lists(st.sampled_from(["\n", "\n", "\r\n", "\r", " ", "\t", "a", "e", "\u0301", "\x07", "\uac00", "\u11a8", "ﬁ", "x y"]), max_size=40)


@settings(QUICK, max_examples=500)
@given(
    text=LINES.map("".join),
    n=st.integers(1, 12),
    chunk=st.sampled_from([4, 16, 1 << 18]),
    form=st.sampled_from([None, "NFC", "NFKC"]),
    newlines=st.sampled_from(["keep", "lf"]),
    blank=st.integers(0, 3),
)
def test_cleaning_a_stream_is_cleaning_the_whole(monkeypatch, text, n, chunk, form, newlines, blank):
    monkeypatch.setattr(d, "_CHUNK", chunk)
    config = DataConfig(unicode_form=form, newlines=newlines, max_blank_lines=blank)
    parts = [text[i : i + n] for i in range(0, len(text), n)]
    cleaned = d.clean_text(text, config)
    if chunk > 16:  # a shorter limit on the length of a line is met by cutting it where that may make a difference
        assert "".join(d.clean_chunks(parts, config)) == cleaned
    assert d.clean_text(cleaned, config) == cleaned
    assert "\x07" not in cleaned and not (newlines == "lf" and "\r" in cleaned)
    assert form is None or unicodedata.is_normalized(form, cleaned)
    blanks = "".join("b" if line.strip(" \t\r") == "" else "x" for line in cleaned.split("\n")[:-1])
    assert "b" * (blank + 1) not in blanks


@pytest.mark.parametrize("form", ["NFC", "NFKC", None])
@pytest.mark.parametrize("filler", ["你好世界", "한국어텍스트", "e\u0301", "word ", "\u1112\u1161\u11ab"])
def test_a_long_line_is_cleaned_in_parts_without_a_difference(monkeypatch, form, filler):
    monkeypatch.setattr(d, "_CHUNK", 256)
    text = filler * 2000
    parts = [text[i : i + 100] for i in range(0, len(text), 100)]
    config = DataConfig(unicode_form=form)
    blocks = list(d._line_blocks(parts, form))
    assert "".join(blocks) == text and max(map(len, blocks)) < 2000
    assert "".join(d.clean_chunks(parts, config)) == d.clean_text(text, config)


def test_without_cleaning_the_text_is_untouched(folder, tokenizer):
    content = "cafe\u0301\x07\n\n\n\n\n\r\r\n  x"
    _write("a.txt", content.encode())
    dataset = TextDataset("a.txt", 8, tokenizer, {"clean": False})
    assert tokenizer.decode(dataset.tokens) == content and dataset.n_bytes == len(content.encode())


def test_the_report_counts(folder, text):
    make(folder, "t/a.txt", content=text)
    for name, content in ("b", "same"), ("c", "same"), ("d", "x"), ("e", "ding\x07"):
        _write(f"t/{name}.txt", content.encode())
    report = DataReport()
    config = DataConfig(min_chars=2)
    documents = list(load_documents(find_files("t"), config, report))
    assert [report.files, report.documents, report.kept_documents] == [5, 5, 3] and len(documents) == 3
    assert [report.duplicates, report.too_short, report.cleaned, report.near_duplicates] == [1, 1, 1, 0]
    assert report.bytes == sum(f.stat().st_size for f in find_files("t"))
    assert report.kept_bytes == sum(len(doc.encode()) for doc in documents)
    assert "left out: 1 too short, 1 duplicate" in str(report) and "| duplicates | 1 |" in report._repr_markdown_()
    assert DataReport(**vars(report)) == report


def test_duplicates_stay_when_asked(folder, tokenizer):
    for name in "abc":
        _write(f"{name}.txt", b"the same text")
    assert len(TextDataset(".", 8, tokenizer).starts) == 1
    assert len(TextDataset(".", 8, tokenizer, {"deduplicate": False}).starts) == 3


def test_near_duplicates(text):
    paragraphs = text.split("\n")
    copy = text.replace("boats", "ships")
    other = "Nothing of this is about the sea. " * 30
    kept = list(d.deduplicate([text, other, copy, text.upper(), other + "!"], near=0.5))
    assert kept == [text, other]
    assert list(d.deduplicate([text, copy])) == [text, copy]
    assert len(list(d.deduplicate(paragraphs, near=1.0))) == len(set(paragraphs))
    for short in "", "a", "你好":
        assert d.minhash(short).shape == (128,)


@settings(QUICK, max_examples=20)
@given(share=st.floats(0, 1))
def test_minhash_estimates_the_similarity(share):
    rng = np.random.default_rng(5)
    left, right = ("".join(rng.choice(list("abcdefgh "), 2000)) for _ in range(2))
    mixed = left[: int(share * 2000)] + right[int(share * 2000) :]
    a, b = set(d.shingles(left).tolist()), set(d.shingles(mixed).tolist())
    assert abs(len(a & b) / len(a | b) - np.mean(d.minhash(left) == d.minhash(mixed))) < 0.2


# ---- the token file


def test_token_file(folder, tokenizer):
    documents = ["one two", "three\nfour " * 100, "你"]
    tokens = encode_documents(documents, tokenizer, "x.tokens")
    expected = [tokenizer.encode(text, bos=True, eos=True) for text in documents]
    assert tokens.tokens.tolist() == sum(expected, []) and tokens.tokens.dtype == np.uint16
    assert tokens.starts.tolist() == [0, len(expected[0]), len(expected[0]) + len(expected[1])]
    assert tokens.text_bytes == sum(len(text.encode()) for text in documents)
    assert tokens.fingerprint == tokenizer.fingerprint and tokens.vocab_size == tokenizer.vocab_size
    tokens.verify()
    memory = encode_documents(documents, tokenizer)
    memory.verify()
    assert memory.tokens.tolist() == tokens.tokens.tolist() and memory.path is None
    assert isinstance(tokens.tokens, np.memmap) and not tokens.tokens.flags.writeable
    assert os.listdir() == ["x.tokens"]


def test_a_large_vocabulary_takes_four_bytes_an_id(tokenizer):
    class Large(Tokenizer):
        vocab_size = 70_000

    tokens = encode_documents(["one two"], Large(tokenizer.model_bytes))
    assert tokens.tokens.dtype == np.uint32
    tokens.verify()


def test_a_damaged_token_file_is_refused(folder, tokenizer):
    encode_documents(["one two " * 20, "three"], tokenizer, "x.tokens")
    whole = Path("x.tokens").read_bytes()
    for n in [*range(0, 136, 5), len(whole) // 2, len(whole) - 1]:
        _write("cut.tokens", whole[:n])
        assert "cut.tokens" in complaint(TokenFile.open, "cut.tokens")
    for at in range(0, 128):
        _write("bit.tokens", whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        assert "bit.tokens" in complaint(TokenFile.open, "bit.tokens")
    _write("bit.tokens", whole[:140] + bytes([whole[140] ^ 16]) + whole[141:])
    assert "is damaged" in complaint(TokenFile.open("bit.tokens").verify)
    _write("long.tokens", whole + b"\0")
    assert "instead of" in complaint(TokenFile.open, "long.tokens")
    assert "Cannot read none.tokens" in complaint(TokenFile.open, "none.tokens")
    assert "Cannot read" in complaint(TokenFile.open, ".")


def test_a_token_file_is_whole_or_absent(folder, tokenizer):
    def failing():
        yield "fine " * 1000
        raise DataError("stop; here.")

    encode_documents(["before"], tokenizer, "x.tokens")
    with pytest.raises(DataError):
        encode_documents(failing(), tokenizer, "x.tokens")
    assert tokenizer.decode(TokenFile.open("x.tokens").tokens) == "before"
    assert os.listdir() == ["x.tokens"]


def test_a_dataset_from_a_token_file(folder, tokenizer, text):
    tokens = encode_documents([text], tokenizer, "x.tokens")
    dataset = TextDataset("x.tokens", 16, tokenizer)
    assert dataset.tokens.tolist() == tokens.tokens.tolist()
    assert TextDataset("x.tokens", 16).n_bytes is None
    other = train_tokenizer([text], vocab_size=300)
    assert "made by tokenizer" in complaint(TextDataset, "x.tokens", 16, other)


# ---- windows


@settings(QUICK, max_examples=400)
@given(n=st.integers(2, 120), block=st.integers(1, 40), data=st.data())
def test_every_token_but_the_first_is_a_target_exactly_once(n, block, data):
    ids = np.arange(1000, 1000 + n)
    dataset = TextDataset.from_tokens(ids, block)
    x, y = dataset.get_batch(range(len(dataset)))
    assert x.shape == y.shape == (len(dataset), block) and x.dtype == y.dtype == torch.int64
    assert y[y != -100].tolist() == ids[1:].tolist()
    assert x[y != -100].tolist() == ids[:-1].tolist()
    assert dataset.num_targets() == n - 1
    chosen = data.draw(st.lists(st.integers(0, len(dataset) - 1), max_size=6))
    a, b = dataset.get_batch(chosen)
    assert torch.equal(a, x[chosen]) and torch.equal(b, y[chosen]) and a.is_contiguous() and b.is_contiguous()
    assert dataset.num_targets(chosen) == int((b != -100).sum())
    for i in chosen:
        assert torch.equal(dataset[i][0], x[i]) and torch.equal(dataset[i - len(dataset)][1], y[i])


@settings(QUICK, max_examples=300)
@given(n=st.integers(2, 120), block=st.integers(1, 40), data=st.data())
def test_with_a_stride_every_token_is_still_a_target(n, block, data):
    stride = data.draw(st.integers(1, block))
    ids = np.arange(1000, 1000 + n)
    dataset = TextDataset.from_tokens(ids, block, stride=stride)
    x, y = dataset.get_batch(range(len(dataset)))
    assert set(y[y != -100].tolist()) == set(ids[1:].tolist())
    assert (y[y != -100] == x[y != -100] + 1).all()
    assert x[:, 0].tolist() == ids[:: stride][: len(dataset)].tolist()
    assert dataset.num_targets() == int((y != -100).sum())
    assert (y != -100).any(1).all(), "no window without a target"


@settings(QUICK, max_examples=300)
@given(
    n=st.integers(2, 200),
    block=st.integers(1, 40),
    fraction=st.floats(0, 0.99),
    starts=st.lists(st.integers(0, 199), max_size=5, unique=True),
)
def test_train_and_validation_have_no_common_text(n, block, fraction, starts):
    ids = np.arange(1000, 1000 + n)
    dataset = TextDataset.from_tokens(ids, block)
    dataset.starts = np.array(sorted({0, *(s for s in starts if s < n)}))
    train, val = dataset.split(fraction)
    if fraction == 0 or len(dataset) < 2 or n < 4:
        assert train is dataset and val is None
        return
    assert [*train.tokens, *val.tokens] == ids.tolist() and len(train.tokens) >= 2 and len(val.tokens) >= 2
    wanted = max(2, round(n * fraction))
    assert abs(len(val.tokens) - wanted) <= max(2, wanted / 4)
    cut = len(train.tokens)
    near = [s for s in dataset.starts if abs(s - (n - wanted)) <= wanted // 4 and 2 <= s <= n - 2]
    assert not near or cut in near
    assert [*train.starts, *(val.starts + cut)] == dataset.starts.tolist()
    assert len(dataset) == len(TextDataset.from_tokens(ids, block)), "the whole is as it was"


def test_the_cut_moves_to_the_start_of_a_document(folder, tokenizer, text):
    for i in range(12):
        make(folder, f"{i:02}.txt", content=text[: 200 + 10 * i])
    train, val = TextDataset(".", 16, tokenizer).split(0.2)
    assert val.tokens[0] == tokenizer.bos_id and train.tokens[-1] == tokenizer.eos_id


@settings(QUICK, max_examples=60)
@given(texts=st.lists(TEXT.filter(str.strip), min_size=1, max_size=4, unique=True), block=st.integers(1, 20), fraction=st.floats(0, 0.9))
def test_bytes_among_the_targets(tokenizer, texts, block, fraction):
    tokens = encode_documents(texts, tokenizer)
    dataset = TextDataset.from_tokens(tokens, block, tokenizer)
    assert dataset.n_bytes == sum(len(text.encode()) for text in texts) == tokens.text_bytes
    for view in dataset.split(fraction):
        if view:
            lengths = tokenizer.byte_lengths[view.tokens]
            assert view.n_bytes == lengths[1:].sum() == view.target_bytes(range(len(view)))


def test_from_tokens_takes_what_holds_ids(tokenizer):
    for ids in [4, 5, 6], (4, 5, 6), np.array([4, 5, 6], np.uint8), torch.tensor([4, 5, 6]), np.array([4, 5, 6], np.uint64):
        x, y = TextDataset.from_tokens(ids, 4)[0]
        assert x.tolist() == [4, 5, 6, 0] and y.tolist() == [5, 6, -100, -100]
    assert TextDataset.from_tokens([4, 5], 4).n_bytes is None
    for bad in [[4, 5]], [0.5, 1.0], ["a", "b"], [4, -1], [True, False], [4, 400_000]:
        complaint(TextDataset.from_tokens, bad, 4, tokenizer)


def test_case_29_from_two_tokens_up(folder, tokenizer):
    assert "1 id;" in complaint(TextDataset.from_tokens, [7], 4)
    assert "0 ids;" in complaint(TextDataset.from_tokens, [], 4)
    x, y = TextDataset.from_tokens([7, 8], 4)[0]
    assert x.tolist() == [7, 8, 0, 0] and y.tolist() == [8, -100, -100, -100]
    _write("word.txt", b"word")
    dataset = TextDataset("word.txt", 1024, tokenizer)
    assert len(dataset) == 1 and dataset.split(0.1) == (dataset, None) and dataset.n_bytes == 4
    _write("letter.txt", b"a")
    dataset = TextDataset("letter.txt", 8)
    assert dataset.tokenizer.decode(dataset.tokens) == "a"


@pytest.mark.parametrize("sizes", [(0,), (-1,), (2.0,), ("8",), (True,), (None,), (8, 0), (8, 9), (8, -1), (8, 2.0)])
def test_sizes_that_make_no_sense(sizes):
    block, stride = (*sizes, None)[:2]
    if sizes == (8, 0):  # like None
        return
    complaint(TextDataset.from_tokens, range(20), block, stride=stride)


@pytest.mark.parametrize("index", [[3], [-1], [0, 99], torch.tensor([4])])
def test_a_window_that_is_not_there(index):
    dataset = TextDataset.from_tokens(range(10), 4)
    with pytest.raises(IndexError, match="no window"):
        dataset.get_batch(index)
    assert len(list(dataset)) == len(dataset) == 3, "plain iteration ends"
    assert dataset.get_batch([])[0].shape == (0, 4)


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan")])
def test_a_fraction_that_makes_no_sense(fraction):
    assert "val_fraction" in complaint(TextDataset.from_tokens(range(10), 4).split, fraction)


# ---- with PyTorch's tools


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_dataloader_and_subset(folder, tokenizer, text, workers):
    mapped = encode_documents([text], tokenizer, "x.tokens")
    dataset = TextDataset.from_tokens(mapped, 16, tokenizer)
    subset = torch.utils.data.Subset(dataset, range(0, len(dataset), 2))
    context = {"multiprocessing_context": "spawn"} if workers else {}
    loader = torch.utils.data.DataLoader(subset, batch_size=4, num_workers=workers, **context)
    x = torch.cat([x for x, y in loader])
    assert torch.equal(x, dataset.get_batch(range(0, len(dataset), 2))[0])


def test_pickles_are_small_and_equal(folder, tokenizer, text):
    mapped = TextDataset.from_tokens(encode_documents([text] * 50, tokenizer, "x.tokens"), 16, tokenizer)
    memory = TextDataset.from_tokens(np.array(mapped.tokens), 16, tokenizer)
    for dataset in mapped, memory, *mapped.split(0.3), *memory.split(0.3):
        copy = pickle.loads(pickle.dumps(dataset))
        assert copy.tokens.tolist() == dataset.tokens.tolist() and len(copy) == len(dataset)
        assert copy.starts.tolist() == dataset.starts.tolist() and copy.n_bytes == dataset.n_bytes
    assert len(pickle.dumps(mapped)) < len(mapped.tokens)


def test_shown(tokenizer, text):
    dataset = TextDataset.from_tokens(encode_documents([text], tokenizer), 16, tokenizer)
    assert repr(dataset) == f"TextDataset({len(dataset.tokens):,} ids, {len(dataset):,} windows of 16)"
    assert f"| bytes of text | {len(text.encode()):,} |" in dataset._repr_markdown_()
    assert "bytes" not in TextDataset.from_tokens([1, 2], 4)._repr_markdown_()


def test_batches_cost_next_to_nothing(tokenizer, text):
    "Ten times what was measured on a quiet machine: 10 to 20 µs."
    dataset = TextDataset.from_tokens(encode_documents([text] * 200, tokenizer), 256, tokenizer)
    for size in 1, 64:
        chosen = np.random.default_rng(0).integers(0, len(dataset) - 1, size)
        times = []
        for _ in range(200):
            start = time.perf_counter()
            dataset.get_batch(chosen)
            times.append(time.perf_counter() - start)
        assert min(times) < 200e-6


# ---- the default tokenizer


def test_a_tokenizer_is_trained_once_per_text(folder, text, notices, monkeypatch):
    calls = []
    real = d.train_tokenizer
    monkeypatch.setattr(d, "train_tokenizer", lambda *a, **kw: calls.append(1) or real(*a, **kw))
    make(folder, "a.txt", content=text + "one")
    first = TextDataset("a.txt", 16)
    assert first.tokenizer.vocab_size <= 8000 and len(calls) == 1
    assert len(notices) == 1 and notices[0].startswith("vocabulary:"), "row 30: said once"
    assert TextDataset("a.txt", 32).tokenizer == first.tokenizer and len(calls) == 1
    make(folder, "b/a.txt", content=text + "two")
    TextDataset("b", 16)
    assert len(calls) == 2, "another text, another tokenizer"
    config = Config(tokenizer={"vocab_size": 300})
    assert TextDataset("a.txt", 16, config=config).tokenizer.vocab_size == 300 and len(calls) == 3
    TextDataset("a.txt", 16, config={"unicode_form": None})
    assert len(calls) == 4, "other cleaning, another tokenizer"


def test_case_36_a_damaged_cache_is_repaired(folder, text, cache_of_its_own):
    make(folder, "a.txt", content=text + "damaged")
    tokenizer = TextDataset("a.txt", 16).tokenizer
    (model,) = (p for p in (cache_of_its_own / "tokenizers").glob("*/tokenizer.model") if p.read_bytes() == tokenizer.model_bytes)
    model.write_bytes(tokenizer.model_bytes[:100])
    assert TextDataset("a.txt", 16).tokenizer == tokenizer
    assert model.read_bytes() == tokenizer.model_bytes


def test_no_cache_is_no_error(folder, text, notices, monkeypatch):
    _write("file", b"in the way")
    monkeypatch.setenv("LLMBUILDER_CACHE", str(folder / "file"))
    make(folder, "a.txt", content=text)
    assert TextDataset("a.txt", 16).tokenizer
    assert "cannot be used" in notices[0]


@pytest.mark.slow
def test_two_processes_train_one_tokenizer(folder, text, cache_of_its_own):
    make(folder, "a.txt", content=text * 30 + "both")
    code = "from llmbuilder.data import TextDataset; print(TextDataset('a.txt', 16).tokenizer.fingerprint)"
    env = {**os.environ, "PYTHONPATH": str(Path(d.__file__).parent.parent), "LLMBUILDER_CACHE": str(folder / "cache")}
    running = [
        subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    out, err = zip(*(p.communicate(timeout=200) for p in running))
    assert len(set(out)) == 1 and out[0].strip(), err
    assert sum("vocabulary" in e for e in err) == 1, "one of them trained"


@pytest.mark.parametrize(
    "platform, env, place",
    [
        ("linux", {"XDG_CACHE_HOME": "/x/cache"}, "/x/cache/llmbuilder"),
        ("linux", {}, "~/.cache/llmbuilder"),
        ("darwin", {}, "~/Library/Caches/llmbuilder"),
        ("win32", {"LOCALAPPDATA": "/x/local"}, "/x/local/llmbuilder/Cache"),
        ("linux", {"LLMBUILDER_CACHE": "~/mine"}, "~/mine"),
    ],
)
def test_cache_folder(monkeypatch, platform, env, place):
    for name in "LLMBUILDER_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA":
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert d.cache_folder() == Path(place).expanduser()


def test_a_tokenizer_by_its_folder(folder, tokenizer, text):
    tokenizer.save("tok")
    make(folder, "a.txt", content=text)
    assert TextDataset("a.txt", 16, "tok").tokenizer == tokenizer
    with pytest.raises(TokenizerError, match="nowhere"):
        TextDataset("a.txt", 16, "nowhere")


# ---- row 32: through all of it, nothing is lost


@settings(QUICK, max_examples=80)
@given(text=TEXT.filter(lambda t: t.strip() and "\0" not in t))
def test_case_32_text_comes_back_from_a_dataset(folder, tokenizer, text):
    _write("a.txt", text.encode())
    dataset = TextDataset("a.txt", 5, tokenizer, {"clean": False})
    assert tokenizer.decode(dataset.tokens) == text.removeprefix("\ufeff")


# ---- row 31: more text than memory


def test_large_files_go_through_a_file_that_is_removed(folder, tokenizer, text, cache_of_its_own, monkeypatch):
    monkeypatch.setattr(d, "_LONG", 1000)
    make(folder, "a.txt", "b.txt", content=text * 3)
    (cache_of_its_own / "tokens").mkdir(exist_ok=True)
    old, fresh = cache_of_its_own / "tokens/old.tokens", cache_of_its_own / "tokens/fresh.tokens"
    old.touch(), fresh.touch()
    os.utime(old, (0, 0))
    dataset = TextDataset(".", 16, tokenizer)
    assert isinstance(dataset.tokens, np.memmap) and not old.exists() and fresh.exists()
    path = dataset._file.path
    train, val = dataset.split(0.1)
    copy = pickle.loads(pickle.dumps(val))
    assert tokenizer.decode(dataset.tokens) == "".join(d.clean_text(Path(f).read_text()) for f in ("a.txt", "b.txt"))
    assert path.exists() and path.parent == cache_of_its_own / "tokens"
    del dataset, train
    assert path.exists() and len(val)
    del val, copy
    assert not path.exists()


def test_a_long_document_equals_a_short_one(folder, tokenizer, text, monkeypatch):
    "The same text read as a whole and in parts: same ids, same report, duplicates found."
    content = (text + "\n\n\n\n\ncafe\u0301 你好\r\n") * 20
    for name in "ab":
        _write(f"{name}.txt", content.encode())
    one = TextDataset(".", 16, tokenizer, {"near_duplicates": 0.9})
    monkeypatch.setattr(d, "_LONG", 1000)
    monkeypatch.setattr(d, "_CHUNK", 333)
    two = TextDataset(".", 16, tokenizer, {"near_duplicates": 0.9})
    assert one.tokens.tolist() == two.tokens.tolist() and one.report == two.report
    assert one.report.duplicates == 1
    assert TextDataset(["a.txt"], 16).tokenizer == train_tokenizer([d.clean_text(content)])


MEMORY = """
import resource, sys
from llmbuilder import data
from llmbuilder.tokenizer import Tokenizer
data._LONG = 1 << 20
tokenizer, size, end = Tokenizer.load(sys.argv[1]), int(sys.argv[2]), sys.argv[3].replace("n", "\\n").replace("s", " ")
used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
block = ("the quiet harbour, in the morning, with boats. " * 3 + end) * 200
def go(name, size):
    with open(name, "w") as file:
        for _ in range(size // len(block)):
            file.write(block)
    dataset = data.TextDataset(name, 64, tokenizer)
    dataset.get_batch([0, 5, len(dataset) - 1])
    return len(dataset.tokens)
go("small.txt", 3 << 20)
before = used()
n = go("large.txt", size)
print(used() - before, n)
"""


@pytest.mark.parametrize("end", ["n", "s"], ids=["lines", "one line"])
@pytest.mark.parametrize("size", [pytest.param(10, marks=pytest.mark.slow), pytest.param(100, marks=pytest.mark.full)])
def test_case_31_ten_times_more_text_than_memory(folder, tokenizer, run, size, end):
    pytest.importorskip("resource")
    tokenizer.save("tok")
    done = run("-c", MEMORY, "tok", size << 20, end, env={"LLMBUILDER_CACHE": str(folder / "cache")}, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    grown, n = map(float, done.stdout.split())
    assert grown < 10, "MB, however long the text"
    assert n > size * 200_000
