"""The tokenizer under property-based testing, in small memory, and handed files that somebody meant to break it with."""
import json
import os
import pickle
import struct

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llmbuilder import tokenizer as t
from llmbuilder.tokenizer import MIN_VOCAB, Tokenizer, TokenizerError, train_tokenizer

TYPES = "bpe", "unigram", "char"
QUICK = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

# every Unicode scalar value, with more than its share of what means something to SentencePiece
ODD = ["\u2581", "\u2585", "\ufeff", "\0", "\t", "\r", "\n", "\u2047", "\u3000", "\x85", "\u2028", "e\u0301"]
ODD += ["<s>", "</s>", "<unk>", "<pad>", "<0x0A>", "<0x", " ⁇ ", "  ", "👩🏽‍🚀", "你好"]
CHARS = st.characters(exclude_categories=["Cs"])
TEXT = st.lists(st.one_of(CHARS, st.sampled_from(ODD), st.sampled_from("ab .")), max_size=60).map("".join)


@pytest.fixture(scope="module")
def trained(request):
    text = "The harbour was quiet in the early morning.\n\n  Über 12.500 Boote, 你好!\tx = y + 1\r\n" * 20
    return {kind: train_tokenizer([text], vocab_size=400, model_type=kind) for kind in TYPES}


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level("ERROR", logger="llmbuilder")


# ---- nothing is lost (row 32)


@pytest.mark.parametrize("kind", TYPES)
@settings(QUICK, max_examples=400)
@given(text=TEXT)
@example(text="")
@example(text="a\u2581b \u2581\u2581 c")
@example(text="\ufeffx\ufeff")
@example(text=" \0 ")
def test_case_32_every_string_comes_back(trained, kind, text):
    tokenizer = trained[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {0, 1, 2, 3} & set(ids), "text never turns into a special id"
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode("utf-8"))
    decoder = tokenizer.stream_decoder()
    assert "".join(map(decoder.push, ids)) + decoder.flush() == text
    assert tokenizer.encode([text, text], bos=True, eos=True) == [[2, *ids, 3]] * 2
    assert tokenizer.decode([0, 2, *ids, 3, 1]) == text


@settings(QUICK, max_examples=120)
@given(
    texts=st.lists(TEXT, min_size=1, max_size=4),
    other=TEXT,
    kind=st.sampled_from(TYPES),
    size=st.integers(MIN_VOCAB, 400),
    coverage=st.floats(0.01, 1),
    digits=st.booleans(),
)
@example(texts=["0"], other=" ", kind="bpe", size=262, coverage=1.0, digits=False)  # no space in the text
@example(texts=["\u2585"], other="", kind="bpe", size=262, coverage=1.0, digits=False)  # the trainer's own mark
@example(texts=["\r", "<s>"], other="", kind="char", size=300, coverage=1.0, digits=False)
def test_case_30_any_text_trains_a_tokenizer_within_its_vocabulary(texts, other, kind, size, coverage, digits):
    settings = dict(vocab_size=size, model_type=kind, character_coverage=coverage, split_digits=digits)
    if not "".join(texts).strip("\n"):
        with pytest.raises(TokenizerError, match="no text"):
            train_tokenizer(texts, **settings)
        return
    tokenizer = train_tokenizer(texts, **settings)
    assert MIN_VOCAB <= tokenizer.vocab_size <= size
    for text in [*texts, other]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(QUICK, max_examples=200)
@given(st.text(st.characters(), max_size=30))
@example("ab\ud800")
def test_case_32_a_lone_surrogate_is_an_error_that_says_where(trained, text):
    bad = [i for i, char in enumerate(text) if "\ud800" <= char <= "\udfff"]
    if bad:
        with pytest.raises(TokenizerError, match=f"at character {bad[0]},"):
            trained["bpe"].encode(text)
        with pytest.raises(TokenizerError, match=f"at character {bad[0]},"):
            train_tokenizer([text])
    else:
        assert trained["bpe"].decode(trained["bpe"].encode(text)) == text


@settings(QUICK, max_examples=300)
@given(st.lists(st.integers(0, 399), max_size=40))
def test_any_ids_decode_and_a_stream_says_the_same(trained, ids):
    tokenizer = trained["bpe"]
    ids = [i for i in ids if i < tokenizer.vocab_size]
    decoder = tokenizer.stream_decoder()
    assert "".join(map(decoder.push, ids)) + decoder.flush() == tokenizer.decode(ids)


@pytest.mark.parametrize("ids", [[-1], [400_000], [5, 400_000, 6]])
def test_an_id_outside_the_vocabulary_is_an_error(trained, ids):
    with pytest.raises(TokenizerError, match="outside the vocabulary"):
        trained["bpe"].decode(ids)


# ---- cutting


@settings(QUICK, max_examples=300)
@given(text=st.text("ab \n\u2581é", max_size=80), size=st.integers(1, 12), data=st.data())
def test_how_a_text_was_chunked_leaves_no_trace(text, size, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]
    segments = [s for batch in t._segments(chunks, size) for s in batch]
    assert segments == [s for batch in t._segments([text], size) for s in batch]
    assert "".join(segments) == text
    assert all(len(s) <= size or s == s[:size] + "\n" or len(s) == size + 1 for s in segments)
    assert all("\n" not in s[:-1] for s in segments)


@pytest.mark.parametrize("kind", TYPES)
def test_a_text_cut_at_its_newlines_has_the_same_ids(trained, kind, text):
    tokenizer = trained[kind]
    lines = text.splitlines(keepends=True)
    assert sum((tokenizer.encode(line) for line in lines), []) == tokenizer.encode(text)


def test_a_long_line_cut_before_a_space_has_the_same_ids(trained, text):
    line = text.replace("\n", " ") * 10
    assert len(line) > 3 * t.MAX_SEGMENT
    assert trained["bpe"].encode(line) == trained["bpe"]._sp.encode(line)


def test_training_keeps_every_line_however_long():
    "SentencePiece alone drops lines over 4192 bytes, and lines with a NUL in them."
    tokenizer = train_tokenizer(["zyx " * 20_000 + "\0" + " qqq" * 500], vocab_size=300)
    assert tokenizer.pieces("zyx qqq") == ["zyx", "▁qqq"]


# ---- the same text gives the same tokenizer; a long one is sampled


def test_deterministic(text):
    for kind in TYPES:
        assert train_tokenizer([text], model_type=kind).model_bytes == train_tokenizer([text], model_type=kind).model_bytes


def test_a_file_and_its_text_give_the_same_tokenizer(small_text, text):
    expected = train_tokenizer([text])
    assert train_tokenizer(small_text) == train_tokenizer(str(small_text)) == train_tokenizer([small_text]) == expected
    assert train_tokenizer(iter([text])) == train_tokenizer([[text[:50], text[50:]]]) == expected


def test_a_long_text_is_sampled_evenly():
    kept = t._sample([[f"{i:06}\n" for i in range(100_000)]], max_bytes=70_000)
    numbers = [int(line) for line in kept]
    assert 30_000 < 7 * len(numbers) <= 70_000
    assert numbers[0] == 0 and numbers[-1] > 80_000
    assert max(b - a for a, b in zip(numbers, numbers[1:])) < 25_000


@pytest.mark.parametrize("source", [[], [""], ["\n\n"], iter([])])
def test_no_text_is_an_error(source):
    with pytest.raises(TokenizerError, match="no text"):
        train_tokenizer(source)


@pytest.mark.parametrize("source", [[b"bytes"], [3], b"bytes"])
def test_what_is_no_text_is_an_error(source):
    with pytest.raises(TokenizerError, match="must be a string"):
        train_tokenizer(source)


def test_a_file_that_is_missing_or_not_utf8_is_an_error(folder):
    (folder / "latin.txt").write_bytes("é".encode("latin-1"))
    for name, message in ("none.txt", "Cannot read none.txt"), ("latin.txt", "latin.txt is not UTF-8"), (".", "Cannot read"):
        with pytest.raises(TokenizerError, match=message):
            train_tokenizer(name)


def test_case_30_a_vocabulary_below_the_bytes_is_an_error(text):
    with pytest.raises(TokenizerError, match="vocab_size=261 is too small"):
        train_tokenizer([text], vocab_size=261)


def test_case_30_the_vocabulary_shrinks_with_a_notice(text, caplog, monkeypatch):
    said = []
    monkeypatch.setattr(t, "notify", said.append)
    tokenizer = train_tokenizer([text], vocab_size=100_000)
    assert said == [f"vocabulary: {tokenizer.vocab_size:,} ids; the text does not support 100,000"]
    said.clear()
    assert train_tokenizer([text], vocab_size=300).vocab_size == 300 and not said


# ---- save and load


def test_save_and_load(trained, folder):
    for kind, tokenizer in trained.items():
        assert tokenizer.save(folder / "a" / kind) == folder / "a" / kind
        for path in folder / "a" / kind, str(folder / "a" / kind), folder / "a" / kind / "tokenizer.model":
            loaded = Tokenizer.load(path)
            assert loaded == tokenizer and loaded.model_type == kind and loaded.fingerprint == tokenizer.fingerprint
        info = json.loads((folder / "a" / kind / "tokenizer_config.json").read_text())
        assert info["fingerprint"] == tokenizer.fingerprint and info["vocab_size"] == tokenizer.vocab_size
        assert pickle.loads(pickle.dumps(tokenizer)) == tokenizer


def test_the_config_beside_the_model_may_be_missing_or_broken(trained, folder):
    trained["bpe"].save(folder)
    for content in b"{", b"[]", b"{}", b"null", b"\xff":
        (folder / "tokenizer_config.json").write_bytes(content)
        assert Tokenizer.load(folder) == trained["bpe"]
    (folder / "tokenizer_config.json").unlink()
    assert Tokenizer.load(folder) == trained["bpe"]


def test_ids_of_specials_bytes_and_pieces(trained):
    tokenizer = trained["bpe"]
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2, 3)
    assert [tokenizer.piece(i) for i in range(5)] == ["<pad>", "<unk>", "<s>", "</s>", "\n"]
    assert [tokenizer.token_bytes(i) for i in range(5)] == [b"", b"", b"", b"", b"\n"]
    assert "".join(tokenizer.pieces("in the harbour")).replace("▁", " ") == "in the harbour"
    assert len(tokenizer) == tokenizer.vocab_size == len(tokenizer.byte_lengths)


def test_case_37_what_is_shown_is_escaped():
    tokenizer = train_tokenizer(["<script>alert(1)</script> a|b|c " * 50])
    assert "<script>" not in tokenizer._repr_markdown_() and "|b" not in tokenizer._repr_markdown_()
    assert train_tokenizer(["ab"], model_type="char")._repr_markdown_().count("\n") == 5, "no piece breaks the table"


# ---- crafted and damaged models (row 36)


def field(number, value):
    "A protobuf field."
    def varint(n):
        return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def piece(text, kind=1, score=0.0):
    return field(1, field(1, text) + field(2, score) + field(3, kind))


SPECIALS = [piece(b"<pad>", 3), piece(b"<unk>", 2), piece(b"<s>", 3), piece(b"</s>", 3)]
BYTES = [piece(f"<0x{i:02X}>".encode(), 6) for i in range(256)]
SPACE = piece("\u2581".encode())
TRAINER = field(2, field(3, 2) + field(35, 1))  # bpe, with byte fallback
NORMALIZER = field(3, field(1, b"identity") + field(3, 0) + field(4, 0))


def model(*pieces, trainer=TRAINER, normalizer=NORMALIZER):
    return b"".join([*SPECIALS, *BYTES, *pieces, trainer, normalizer])


def test_case_36_a_model_made_by_hand_is_read():
    tokenizer = Tokenizer(model(SPACE, piece(b"ab"), piece(b"a"), piece(b"b")))
    assert tokenizer.pieces("ab b") == ["ab", "▁", "b"]


def nested(n):
    data = b""
    for _ in range(n):
        data = field(3, data)
    return data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\xff" * 100,
        b"\x80" * 100,
        b"PK\x03\x04 a zip",
        b"\x0a\xff\xff\xff\xff\x7f",  # a piece of 30 GB
        model(),  # no space
        model(SPACE, piece(b"")),
        model(SPACE, piece(b"\xff")),  # not UTF-8
        model(SPACE, piece(b"a", score=float("nan"))),
        model(SPACE, piece(b"a", score=float("inf"))),
        model(SPACE, piece(b"a"), piece(b"a")),  # twice
        model(SPACE, piece(b"a", 3)),  # a control id among the text
        model(SPACE, piece(b"a", 5)),
        model(SPACE, piece(b"a", 99)),
        model(SPACE, piece(b"<0x0A>", 6)),
        model(SPACE, piece(b"<0xZZ>", 6)),
        model(SPACE, trainer=field(2, field(3, 3) + field(35, 1))),  # words
        model(SPACE, trainer=field(2, field(3, 2) + field(35, 1) + field(24, 1))),  # spaces at the end of pieces
        model(SPACE, trainer=b""),
        model(SPACE, normalizer=b""),
        model(SPACE, normalizer=field(3, field(1, b"nmt_nfkc") + field(3, 0) + field(4, 0))),
        model(SPACE, normalizer=field(3, field(1, b"identity") + field(3, 1) + field(4, 0))),
        model(SPACE, normalizer=field(3, field(1, b"identity") + field(3, 0) + field(4, 0) + field(2, b"\xff" * 64))),
        b"".join([*BYTES, SPACE, TRAINER, NORMALIZER]),
        b"".join([*SPECIALS, *BYTES[:-1], SPACE, TRAINER, NORMALIZER]),
        model(SPACE) + field(1, b"\x08"),
        nested(5000),
    ],
    ids=range(28),
)
def test_case_36_a_crafted_model_is_an_error(data, folder):
    with pytest.raises(TokenizerError, match="not a tokenizer.model"):
        Tokenizer(data)
    (folder / "tokenizer.model").write_bytes(data)
    with pytest.raises(TokenizerError, match="folder with späces"):
        Tokenizer.load(folder)


DAMAGE = """
import random, sys
from llmbuilder.tokenizer import Tokenizer, TokenizerError
rng, good, bad = random.Random(1), 0, 0
for name in sys.argv[1:]:
    whole = open(name, "rb").read()
    cases = [whole[:n] for n in range(0, len(whole), max(1, len(whole) // 200))]
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 3])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        cases.append(bytes(data))
    for _ in range(100):
        at = rng.randrange(len(whole))
        cases.append(whole[:at] + whole[at + rng.randrange(1, 60):])
    for data in cases:
        try:
            tokenizer = Tokenizer(data)
            text = "in the harbour, 你好\\n\\t<s> "
            assert tokenizer.decode(tokenizer.encode(text)) == text
            good += 1
        except TokenizerError:
            bad += 1
print(good, bad)
"""


def test_case_36_truncated_and_flipped_models_never_crash_the_process(trained, folder, run):
    for kind, tokenizer in trained.items():
        (folder / f"{kind}.model").write_bytes(tokenizer.model_bytes)
    done = run("-c", DAMAGE, *(f"{kind}.model" for kind in TYPES))
    assert done.returncode == 0, done.stderr[-2000:]
    good, bad = map(int, done.stdout.split())
    assert bad > 1000 and good + bad > 2000


def test_case_36_one_flipped_byte_is_noticed_beside_the_config(trained, folder):
    trained["bpe"].save(folder)
    whole = (folder / "tokenizer.model").read_bytes()
    for at in range(0, len(whole), len(whole) // 40):
        (folder / "tokenizer.model").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(TokenizerError):
            Tokenizer.load(folder)


@pytest.mark.parametrize("path", ["nowhere", "empty", "x.model", "a\0b"])
def test_nothing_to_load_is_an_error(folder, path):
    (folder / "empty").mkdir()
    with pytest.raises(TokenizerError, match="o tokenizer at"):
        Tokenizer.load(path)


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_folder_without_permission_is_an_error(trained, folder):
    trained["bpe"].save(folder / "closed")
    (folder / "closed" / "tokenizer.model").chmod(0)
    with pytest.raises(TokenizerError, match="ermission"):
        Tokenizer.load(folder / "closed")


# ---- size (row 29)

LONG_LINE = """
import resource, sys
from llmbuilder.tokenizer import Tokenizer
tokenizer = Tokenizer.load(sys.argv[1])
size = int(sys.argv[2])
used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (2**20 if sys.platform == "darwin" else 2**10)
text = "the quiet harbour, in the morning. " * 20
tokenizer.encode(text * 500)
line = (text * (size // len(text) + 1))[:size]
before = used()
n = sum(len(ids) for ids in tokenizer.encode_stream(line[i:i + 2**18] for i in range(0, size, 2**18)))
streamed = used() - before
ids = tokenizer.encode(line)
encoded = used() - before
assert len(ids) == n and tokenizer.decode(ids) == line
print(streamed, encoded, used() - before, n)
"""


@pytest.mark.parametrize("size", [4_000_000, pytest.param(50_000_000, marks=pytest.mark.full)])
def test_case_29_one_very_long_line_in_bounded_memory(trained, folder, run, size):
    pytest.importorskip("resource")
    trained["bpe"].save(folder)
    done = run("-c", LONG_LINE, folder, size)
    assert done.returncode == 0, done.stderr[-2000:]
    streamed, encoded, decoded, n = map(int, done.stdout.split())
    assert streamed < 20, "MB, however long the text"
    assert encoded < 40 + 10 * n / 2**20, "a list of numbers"
    assert decoded < 60 + 22 * n / 2**20 + 3 * size / 2**20


def test_a_folder_is_replaced_whole_or_not_at_all(trained, folder, monkeypatch):
    "When the model is new and the config is old, the pair must not look like a damaged one."
    trained["bpe"].save(folder)
    writes = []

    def fail_second(path, data):
        writes.append(path)
        if len(writes) == 2:
            raise OSError(28, "No space left on device")
        t_write(path, data)

    t_write = t.atomic_write_bytes
    monkeypatch.setattr(t, "atomic_write_bytes", fail_second)
    with pytest.raises(OSError):
        trained["char"].save(folder)
    assert Tokenizer.load(folder) == trained["char"]
