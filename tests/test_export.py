"""To and from other people's formats, with the libraries that read and write them."""
import json
import os
import random
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers")

from llmbuilder.checkpoint import load_model, save_checkpoint  # noqa: E402
from llmbuilder.config import Config, LLMBuilderError, ModelConfig  # noqa: E402
from llmbuilder.export import (  # noqa: E402
    ExportError, HFTokenizer, from_hf, from_safetensors, gguf_tensors, hf_config, import_model, layout_of, model_card,
    to_gguf, to_hf, to_safetensors, tokenizer_json)
from llmbuilder.model import build_model  # noqa: E402
from llmbuilder.tokenizer import train_tokenizer  # noqa: E402

TEXT = (Path(__file__).parent.parent / "nbs" / "tinyshakespeare.txt").read_text(encoding="utf-8")[:40_000]
SIZES = dict(vocab_size=400, max_seq_length=32, embedding_dim=48, num_layers=2, num_heads=4)
SHAPES = {
    "qwen3": ModelConfig(**SIZES, num_kv_heads=2, head_dim=16, rope_theta=5e3),
    "qwen3 untied": ModelConfig(**SIZES, tie_embeddings=False),
    "llama": ModelConfig(**SIZES, num_kv_heads=1, qk_norm=False),
    "llama biases": ModelConfig(**SIZES, head_dim=8, qk_norm=False, bias=True, tie_embeddings=False),
    "gpt2": ModelConfig.gpt2(**SIZES),
    "gpt2 no biases": ModelConfig.gpt2(**SIZES, bias=False, hidden_dim=80),
    "gpt2 untied": ModelConfig.gpt2(**SIZES, tie_embeddings=False),
}


def noisy(model):
    torch.manual_seed(1)
    for p in model.parameters():
        if p.ndim == 1:
            p.data += 0.3 * torch.randn_like(p)
    return model.eval()


def built(config):
    torch.manual_seed(0)
    return noisy(build_model(ModelConfig.from_dict(config.to_dict())))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([TEXT], vocab_size=400)


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_equal_there_and_back(shape, tokenizer, tmp_path):
    model, ids = built(SHAPES[shape]), torch.randint(400, (2, 32))
    to_hf((model, tokenizer), tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert theirs.config.model_type == shape.split()[0]
    back, same = from_hf(tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids), atol=1e-4, rtol=0)
        torch.testing.assert_close(back(ids), model(ids), atol=1e-6, rtol=0)
    assert same == tokenizer
    assert {p.name for p in tmp_path.iterdir()} == {"out"}


@pytest.mark.parametrize("name", ["bias", "no bias", "head", "transposed names"])
def test_models_of_transformers_are_read(name, tmp_path):
    torch.manual_seed(0)
    sizes = dict(vocab_size=90, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, max_position_embeddings=40, bos_token_id=0, eos_token_id=1)
    theirs = {
        "bias": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, attention_bias=True)),
        "no bias": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, tie_word_embeddings=True)),
        "head": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**sizes, head_dim=24)),
        "transposed names": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(
            vocab_size=90, n_positions=40, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1)),
    }[name]()  # fmt: skip
    theirs = noisy(theirs)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")  # several files and an index
    ours, none = from_hf(tmp_path / "theirs")
    assert none is None and len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    ids = torch.randint(90, (2, 40))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=0)


def strings():
    rng = random.Random(0)
    yield from ("", " ", "  two", "\n\n x\r\n\t\0", "<s>hi</s><pad><unk>", "<0xE2>", "\u2581 \u2581a", "na\u00efve \u65e5\u672c \U0001f600")
    yield from (" " * 50, "a" * 77, TEXT[:5000])
    for i in range(600):
        start = rng.randrange(len(TEXT) - 200)
        yield "".join(rng.choices([*sorted(set(TEXT)), "\u00e9", "\u2581", "\t"], k=rng.randint(1, 40)))
        yield "".join(rng.choices("aeo t", k=rng.randint(1, 40)))
        yield TEXT[start : start + rng.randint(1, 200)]


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_ids_are_equal(kind, tmp_path):
    tokenizer = train_tokenizer([TEXT], vocab_size=700, model_type=kind)
    model = built(ModelConfig(**{**SIZES, "vocab_size": 700}))
    to_hf((model, tokenizer), tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for s in strings():
        ids = tokenizer.encode(s)
        assert theirs(s)["input_ids"] == ids, s
        assert theirs.decode(ids) == s
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (2, 3, 0)


def test_unigram_ids_are_equal_on_text(tmp_path):
    "Exact ties between two ways to cut a word may fall differently: nearly all of ordinary text is equal, all comes back."
    tokenizer = train_tokenizer([TEXT], vocab_size=400, model_type="unigram")
    to_hf((built(SHAPES["qwen3"]), tokenizer), tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    lines = TEXT[:8000].splitlines()
    assert sum(theirs(s)["input_ids"] == tokenizer.encode(s) for s in lines) >= 0.99 * len(lines)
    assert all(theirs.decode(theirs(s)["input_ids"]) == s for s in lines)


def test_they_write_the_same_text(tokenizer, tmp_path):
    from llmbuilder.generation import TextGenerator

    model = built(SHAPES["qwen3"])
    to_hf((model, tokenizer), tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    batch = reader("First Citizen", return_tensors="pt")
    out = theirs.generate(**batch, max_new_tokens=12, do_sample=False)
    expected = TextGenerator(model, tokenizer).generate("First Citizen", temperature=0, max_new_tokens=12)
    assert reader.decode(out[0], skip_special_tokens=True) == expected


def test_byte_level_tokenizer_of_others(tmp_path):
    import tokenizers

    inner = tokenizers.ByteLevelBPETokenizer()
    inner.train_from_iterator([TEXT], vocab_size=300, special_tokens=["<|endoftext|>"])
    config = transformers.GPT2Config(vocab_size=300, n_positions=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    inner.save(str(tmp_path / "gpt2" / "tokenizer.json"))
    model, tokenizer = from_hf(tmp_path / "gpt2")
    assert isinstance(tokenizer, HFTokenizer) and tokenizer.vocab_size == 300 == model.config.vocab_size
    assert tokenizer.encode("Before we") == inner.encode("Before we").ids
    assert tokenizer.decode(tokenizer.encode("na\u00efve \U0001f600")) == "na\u00efve \U0001f600"
    assert (tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id) == (0, 0, 0)


def test_tokenizers_of_others_that_do_not_fit(tokenizer, tmp_path, monkeypatch):
    import tokenizers

    inner = tokenizers.ByteLevelBPETokenizer()
    inner.train_from_iterator([TEXT], vocab_size=300)
    config = transformers.GPT2Config(vocab_size=280, n_positions=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    folder = tmp_path / "gpt2"
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    inner.save(str(folder / "tokenizer.json"))
    whole = (folder / "tokenizer.json").read_text()

    def refused(words):
        with pytest.raises(LLMBuilderError, match=words) as caught:
            import_model(folder, tmp_path / "out")
        assert "\n" not in str(caught.value) and [p.name for p in tmp_path.iterdir()] == ["gpt2"]

    refused("has 300 ids and its model 280")
    (folder / "tokenizer.json").write_text(whole[:-200])
    refused("cannot be read as JSON")
    (folder / "tokenizer.json").write_text(whole.replace('"type":"ByteLevel"', '"type":"Fuse"').replace('"type": "ByteLevel"', '"type": "Fuse"'))
    refused("not of a byte-level|cannot be used")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(tokenizer)))
    refused("not of a byte-level")
    (folder / "tokenizer.json").write_text(whole)
    change_config(folder, eos_token_id=None)
    refused("eos_token_id")
    change_config(folder, eos_token_id=5000)
    refused("cannot be used")
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    change_config(folder, eos_token_id=0)
    refused("pip install tokenizers")


def test_from_a_checkpoint_with_its_card(tokenizer, tmp_path):
    model = built(SHAPES["qwen3"])
    config = Config.from_dict({"model": model.config.to_dict(), "tokenizer": {"vocab_size": 400}, "training": {"seed": 7}})
    stored = {"model": torch.tensor(list(tokenizer.model_bytes), dtype=torch.uint8), "fingerprint": tokenizer.fingerprint}
    counters = {"step": 120, "epoch": 1, "val_loss": 2.5, "bits_per_byte": 1.75, "tokens": 999}
    run = tmp_path / "run"
    path = save_checkpoint(run / "checkpoints" / "latest_checkpoint.pt", {
        "model": model.state_dict(), "config": config.to_dict(), "counters": counters, "tokenizer": stored})
    (run / "run.json").write_text(json.dumps({"data": ["/home/somebody/plays.txt"]}))
    for source, write in (path, to_hf), (run, to_safetensors):
        card = (write(source, tmp_path / write.__name__) / "README.md").read_text()
        for fact in "plays.txt", "120", "999", "2.5000", "1.7500", "| seed | 7 |", "llmbuilder 3.", f"{model.config.num_parameters:,}":
            assert fact in card, fact
        assert "somebody" not in card
    assert "not known" in model_card(model)


@pytest.mark.parametrize("change", [{"mlp": "gelu"}, {"norm": "layernorm"}, {"position": "learned"}, {"bias": True}])
def test_other_shapes(change, tokenizer, tmp_path):
    model, ids = built(ModelConfig(**SIZES, **change)), torch.randint(400, (1, 9))
    with pytest.raises(ExportError, match="No other program"):
        to_hf((model, tokenizer), tmp_path / "hf")
    assert not list(tmp_path.iterdir())
    to_safetensors((model, tokenizer), tmp_path / "bundle")
    back, same = from_safetensors(tmp_path / "bundle")
    assert torch.equal(back(ids), model(ids)) and same == tokenizer


def change_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize("damage, words", [
    (lambda f: change_config(f, model_type="bert"), "type 'bert'"),
    (lambda f: change_config(f, hidden_act="relu"), "hidden_act = 'relu'"),
    (lambda f: change_config(f, rope_parameters={"rope_type": "yarn"}), "scales its rotary"),
    (lambda f: change_config(f, vocab_size=500), "vocabulary does not fit"),
    (lambda f: change_config(f, hidden_size="wide"), "embedding_dim"),
    (lambda f: change_config(f, num_hidden_layers=3), "lack"),
    (lambda f: change_config(f, num_hidden_layers=1), "no place for"),
    (lambda f: change_config(f, num_hidden_layers=10**9), "layers"),
    (cut, "damaged or incomplete"),
    (lambda f: (f / "model.safetensors").write_bytes(b"x" * 50), "damaged or incomplete"),
    (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
    (lambda f: (f / "config.json").write_text("{"), "JSON"),
    (lambda f: (f / "config.json").unlink(), "no config.json"),
])  # fmt: skip
def test_a_bad_folder_gets_one_sentence(damage, words, tokenizer, tmp_path):
    folder = to_hf((built(SHAPES["qwen3"]), tokenizer), tmp_path / "out")
    damage(folder)
    with pytest.raises(LLMBuilderError, match=words) as caught:
        from_hf(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", SHAPES)
def test_gguf_is_read_by_another_program(shape, tokenizer, tmp_path):
    pytest.importorskip("gguf")
    model, ids = built(SHAPES[shape]), torch.randint(400, (2, 32))
    to_gguf((model, tokenizer), tmp_path / "m.gguf", "f32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", config=transformers.AutoConfig.for_model(**hf_config(model.config))).eval()
    if "biases" in shape and layout_of(model.config) == "llama":  # transformers reads no such biases from GGUF: compare ours
        return
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind, error", [("f32", 0), ("f16", 1e-3), ("q8_0", 1e-2)])
def test_gguf_is_read_back(kind, error, tmp_path):
    gguf = pytest.importorskip("gguf")
    tokenizer = train_tokenizer([TEXT], vocab_size=390)
    model = built(ModelConfig(**{**SIZES, "embedding_dim": 64, "tie_embeddings": False}))
    reader = gguf.GGUFReader(to_gguf((model, tokenizer), tmp_path / "m.gguf", kind))
    expected, stored = gguf_tensors(model), {t.name: t for t in reader.tensors}
    assert stored.keys() == expected.keys()
    for name, t in stored.items():
        back = torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).copy()).view(expected[name].shape)
        torch.testing.assert_close(back, expected[name], atol=error * expected[name].abs().max().item() + 0, rtol=0)
        assert t.tensor_type.name == ("F32" if expected[name].ndim == 1 else kind.upper())
    value = lambda key: reader.fields[key].contents()
    assert value("qwen3.attention.head_count") == 4 and value("qwen3.rope.freq_base") == 10000
    pieces = value("tokenizer.ggml.tokens")
    assert pieces[:390] == [tokenizer.piece(i) for i in range(390)] and len(pieces) == 400
    kinds = value("tokenizer.ggml.token_type")
    assert kinds[:5] == [3, 2, 3, 3, 4] and set(kinds[390:]) == {5} and kinds.count(6) == 256
    assert value("tokenizer.ggml.eos_token_id") == 3 and value("tokenizer.ggml.add_space_prefix") is False
    assert "library_name: gguf" in (tmp_path / "m.md").read_text()
    assert {p.name for p in tmp_path.iterdir()} == {"m.gguf", "m.md"}


def test_gguf_refuses(tokenizer, tmp_path, monkeypatch):
    model = built(SHAPES["qwen3"])
    unigram = train_tokenizer([TEXT], vocab_size=400, model_type="unigram")
    large = built(SHAPES["qwen3"])
    large.blocks[0].mlp.down.weight.data[0, 0] = 1e5
    for source, kind, words in [((model, tokenizer), "q4", "no GGUF type 'q4'"), ((model, None), "f16", "has none"),
                                ((model, unigram), "f16", "of type unigram"), ((large, tokenizer), "f16", "too large"),
                                ((built(ModelConfig(**SIZES, mlp="gelu")), tokenizer), "f16", "No other program")]:
        with pytest.raises(ExportError, match=words):
            to_gguf(source, tmp_path / "m.gguf", kind)
    assert not list(tmp_path.iterdir())
    to_gguf((model, tokenizer), tmp_path / "m.gguf")
    with pytest.raises(ExportError, match="exists"):
        to_gguf((model, tokenizer), tmp_path / "m.gguf")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(ExportError, match="pip install gguf"):
        to_gguf((model, tokenizer), tmp_path / "n.gguf")


def test_a_tokenizer_that_does_not_fit(tmp_path):
    large, small = train_tokenizer([TEXT], vocab_size=420), built(SHAPES["qwen3"])
    for write in to_hf, to_safetensors:
        with pytest.raises(LLMBuilderError, match="420 ids"):
            write((small, large), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tokenizer, tmp_path):
    (tmp_path / "out").mkdir()
    to_hf((built(SHAPES["qwen3"]), tokenizer), tmp_path / "out")  # an empty folder is fine
    before = (tmp_path / "out" / "config.json").read_bytes()
    with pytest.raises(ExportError, match="not an empty folder"):
        to_safetensors((built(SHAPES["gpt2"]), tokenizer), tmp_path / "out")
    assert (tmp_path / "out" / "config.json").read_bytes() == before


def test_a_full_disk_leaves_nothing(tokenizer, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llmbuilder.export.save_file", full)
    with pytest.raises(ExportError, match="No space left"):
        to_hf((built(SHAPES["qwen3"]), tokenizer), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_bundle_that_is_damaged(tokenizer, tmp_path):
    folder = to_safetensors((built(SHAPES["qwen3"]), tokenizer), tmp_path / "out")
    with pytest.raises(ExportError, match="type None"):
        from_hf(folder)
    cut(folder)
    with pytest.raises(ExportError, match="damaged"):
        from_safetensors(folder)
    with pytest.raises(ExportError, match="not a bundle"):
        from_safetensors(to_hf((built(SHAPES["qwen3"]), tokenizer), tmp_path / "hf"))


def test_config_has_what_older_readers_want():
    config = hf_config(SHAPES["qwen3"])
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 5e3


def shell(*words):
    from llmbuilder.cli import main

    return main([str(word) for word in words])


def test_commands(tokenizer, tmp_path, capsys):
    model = built(SHAPES["qwen3"])
    bundle = to_safetensors((model, tokenizer), tmp_path / "bundle")
    assert shell("import", bundle, tmp_path / "run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["tokenizer"] is True
    assert shell("info", tmp_path / "run") == 0
    assert shell("generate", "--model", tmp_path / "run", "--prompt", "The", "--max-new-tokens", "2", "--device", "cpu") == 0
    assert shell("export", "hf", tmp_path / "run", tmp_path / "hf") == 0
    assert shell("export", "safetensors", tmp_path / "run", tmp_path / "again") == 0
    assert shell("export", "gguf", tmp_path / "run", tmp_path / "model.gguf", "--type", "q8_0") == 0
    assert "wrote" in capsys.readouterr().out
    assert shell("import", tmp_path / "hf", tmp_path / "run2") == 0
    ids = torch.randint(400, (1, 9))
    assert torch.equal(load_model(tmp_path / "run2")[0](ids), model(ids))


def test_commands_refuse(tokenizer, tmp_path, capsys):
    folder = to_hf((built(SHAPES["qwen3"]), tokenizer), tmp_path / "hf")
    assert shell("export", "hf", tmp_path / "none", tmp_path / "out") == 1
    assert shell("export", "hf", folder, folder) == 1
    cut(folder)
    assert shell("import", folder, tmp_path / "out") == 1
    assert capsys.readouterr().err.count("error: ") == 3
    assert {p.name for p in tmp_path.iterdir()} == {"hf"}
