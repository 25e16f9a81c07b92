"""Training further: all of a model, or adapters beside it."""
import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmbuilder.checkpoint import load_checkpoint, load_model, save_checkpoint
from llmbuilder.config import Config, LLMBuilderError, ModelConfig, TrainingConfig
from llmbuilder.finetune import (
    FinetuneError, LoRA, adapters_of, add_lora, finetune, finetune_settings, load_adapter, lora_of, merge_lora,
    save_adapter)
from llmbuilder.model import build_model, count_parameters
from llmbuilder.tokenizer import HFTokenizer, train_tokenizer

TEXT = (Path(__file__).parent.parent / "nbs" / "tinyshakespeare.txt").read_text(encoding="utf-8")[:20_000]
NEW = "Rain in the north, 12 degrees.\nSun in the south, 21 degrees.\n" * 40
SIZES = dict(vocab_size=400, max_seq_length=32, embedding_dim=32, num_layers=2, num_heads=4)
SHAPES = {"qwen3": {}, "gpt2": dict(ModelConfig.gpt2(**SIZES).to_dict()), "biases": dict(qk_norm=False, bias=True, num_kv_heads=2)}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([TEXT], vocab_size=400)


@pytest.fixture
def place(tokenizer, tmp_path):
    "A folder with a checkpoint and a new text."
    state = {"model": built().state_dict(), "counters": {"step": 3, "epoch": 1}, "tokenizer": {
        "model": torch.tensor(list(tokenizer.model_bytes), dtype=torch.uint8), "fingerprint": tokenizer.fingerprint}}
    config = Config.from_dict({"model": built().config.to_dict(), "tokenizer": {"vocab_size": 400}}).to_dict()
    save_checkpoint(tmp_path / "first" / "checkpoints" / "latest_checkpoint.pt", {**state, "config": config})
    (tmp_path / "first" / "run.json").write_text(json.dumps({"data": ["/old/plays.txt"]}))
    (tmp_path / "new.txt").write_text(NEW)
    return tmp_path


def built(shape="qwen3"):
    torch.manual_seed(0)
    return build_model(ModelConfig.from_dict({**SIZES, **SHAPES[shape]})).eval()


def randomised(model):
    torch.manual_seed(2)
    for layer in adapters_of(model).values():
        layer.lora_b.data = torch.randn_like(layer.lora_b) * 0.1
    return model


def settings(lora=True, **changes):
    return finetune_settings(lora, **{"device": "cpu", "mixed_precision": "no", "scheduler": "constant", "warmup_steps": 0,
                                      "num_epochs": 2, "batch_size": 4, **changes})


@pytest.mark.parametrize("shape", SHAPES)
def test_merged_equals_unmerged_and_plain_state(shape):
    model, ids = built(shape), torch.randint(400, (2, 32))
    with torch.no_grad():
        before = model(ids)
        adapted = add_lora(copy.deepcopy(model), rank=3, alpha=7)
        assert torch.equal(adapted(ids), before)
        after = randomised(adapted)(ids)
        assert (after - before).abs().max() > 0.01
        plain = copy.deepcopy(model)
        plain.load_state_dict(adapted.state_dict())  # what a checkpoint would hold
        merged = merge_lora(copy.deepcopy(adapted))
        for other in plain, merged:
            torch.testing.assert_close(other(ids), after, atol=1e-4, rtol=0)
    assert not adapters_of(merged) and all(p.requires_grad for p in merged.parameters())
    assert {n: p.shape for n, p in merged.state_dict().items()} == {n: p.shape for n, p in model.state_dict().items()}
    again = randomised(add_lora(merged))(ids)
    assert (again - after).abs().max() > 0.01


def test_every_setting_counts():
    numbers = lambda **s: count_parameters(add_lora(built(), **s), trainable=True)
    assert numbers(rank=4) == 2 * numbers(rank=2)
    assert numbers(rank=2, targets=("qkv", "down")) == 2 * (2 * (32 + 96) + 2 * (built().config.ffn_dim + 32))
    ids = torch.randint(400, (1, 8))
    low, high = (randomised(add_lora(built(), LoRA(alpha=a)))(ids) for a in (1, 30))
    assert (low - high).abs().max() > 0.01


@pytest.mark.parametrize("lora", [None, LoRA(rank=2), LoRA(rank=2, targets=("qkv",))])
def test_what_is_trained_and_what_is_not(lora, place):
    model, _, _ = load_model(place / "first")
    before = {n: p.clone() for n, p in model.named_parameters()}
    results = finetune((model, load_model(place / "first")[1]), place / "new.txt", place / "run", lora, settings(), progress=False)
    assert results.status == "finished" and results.final_val_loss < 5.9
    same = {n for n, p in model.named_parameters() if n in before and torch.equal(p, before[n])}
    assert same == (set(before) if lora else set())
    for layer in adapters_of(model).values():
        assert layer.lora_b.any()
    stored, tokenizer, state = load_model(place / "run")
    ids = torch.randint(400, (1, 16))
    with torch.no_grad():
        torch.testing.assert_close(stored(ids), model.eval()(ids), atol=1e-4, rtol=0)
    assert tokenizer is not None
    if lora:
        moved = {n for n, t in stored.state_dict().items() if not torch.equal(t, before[n])}
        assert moved == {f"blocks.{i}.{n}.weight" for i in (0, 1) for n in (
            ["attn.qkv"] if lora.targets else ["attn.qkv", "attn.out", "mlp.gate_up", "mlp.down"])}
        assert set(state["optimizer"]["state"]) == {n for n, _ in model.named_parameters() if "lora_" in n}


def test_a_stopped_run_goes_on_exactly(place):
    go = lambda where, epochs, **o: finetune(place / "first", place / "new.txt", place / where, LoRA(rank=2),
                                             settings(num_epochs=epochs), progress=False, **o)
    go("whole", 2)
    go("halves", 1)
    go("halves", 2, resume="auto")
    whole, halves = (load_checkpoint(place / w / "checkpoints" / "latest_checkpoint.pt") for w in ("whole", "halves"))
    for a, b in (whole["model"], halves["model"]), (whole["callbacks"]["lora"]["tensors"], halves["callbacks"]["lora"]["tensors"]):
        assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
    for lora, words in (LoRA(rank=3), "does not have the shape"), (None, "it was trained with LoRA"):
        with pytest.raises(LLMBuilderError, match=words):
            finetune(place / "first", place / "new.txt", place / "halves", lora, settings(bool(lora), num_epochs=3),
                     resume="auto", progress=False)


def test_a_run_says_where_it_comes_from(place):
    from llmbuilder.export import to_safetensors
    from llmbuilder.pipeline import resume_plan

    finetune(place / "first", place / "new.txt", place / "run", LoRA(), settings(num_epochs=1), progress=False)
    run = json.loads((place / "run" / "run.json").read_text())
    assert run["finetuned_from"].endswith("latest_checkpoint.pt") and run["lora"]["rank"] == 8
    card = (to_safetensors(place / "run", place / "bundle") / "README.md").read_text()
    assert "plays.txt, new.txt" in card
    with pytest.raises(LLMBuilderError, match="finetune --resume"):
        resume_plan(place / "run")


def test_adapter_files(place):
    model, ids = randomised(add_lora(built(), rank=2, alpha=5, targets=("out",))), torch.randint(400, (1, 8))
    file = save_adapter(model, place / "adapters" / "a.safetensors")
    back = load_adapter(built(), file)
    assert torch.equal(back(ids), model(ids)) and lora_of(back) == lora_of(model)
    assert file.stat().st_size < 6000
    other = build_model(ModelConfig(**SIZES))
    tensors = load_file(file)
    first = min(tensors)
    save_file(tensors, place / "bare.safetensors")
    from safetensors import safe_open
    with safe_open(file, "pt") as f:
        save_file({**tensors, first: tensors[first][:1].clone()}, place / "odd.safetensors", metadata=f.metadata())
    (place / "cut.safetensors").write_bytes(file.read_bytes()[:-50])
    for bad, to, words in [(file, other, "other weights"), (place / "bare.safetensors", built(), "not an adapter"),
                           (place / "cut.safetensors", built(), "damaged"), (place / "none", built(), "no file"),
                           (place / "odd.safetensors", built(), "another rank")]:
        before = {n: p.clone() for n, p in to.named_parameters()}
        with pytest.raises(FinetuneError, match=words) as caught:
            load_adapter(to, bad)
        assert "\n" not in str(caught.value) and not adapters_of(to)
        assert all(torch.equal(p, before[n]) for n, p in to.named_parameters())


@pytest.mark.parametrize("call, words", [
    (lambda m: LoRA(rank=0), "rank = 0"), (lambda m: LoRA(rank=2.5), "rank = 2.5"), (lambda m: LoRA(alpha=-1), "alpha = -1"),
    (lambda m: LoRA(targets="qkv"), "several names"), (lambda m: add_lora(m, targets=("q",)), "no layer named 'q'"),
    (lambda m: add_lora(m, targets=()), "no layer"), (lambda m: add_lora(add_lora(m)), "adapters already"),
    (lambda m: save_adapter(m, "x"), "no adapters"),
    (lambda m: finetune((m, None), "x.txt", "run"), "has none"),
    (lambda m: finetune((m, None), "x.txt", "run", LoRA(), TrainingConfig(optimizer="muon")), "muon"),
    (lambda m: finetune((m, None), "x.txt", "run", LoRA(), TrainingConfig(ema_decay=0.9)), "ema_decay"),
])  # fmt: skip
def test_refused_in_one_sentence(call, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FinetuneError, match=words):
        call(built())
    assert not list(tmp_path.iterdir())


def shell(*words):
    from llmbuilder.cli import main

    return main([str(word) for word in words])


def test_command(place, capsys):
    small = ["--data", place / "new.txt", "--max-steps", 2, "--device", "cpu"]
    assert shell("finetune", "--model", place / "first", *small, "--output", place / "run", "--rank", 2) == 2
    assert "add --lora" in capsys.readouterr().err and not (place / "run").exists()
    assert shell("finetune", "--model", place / "first", *small, "--output", place / "run", "--lora", "--rank", 2,
                 "--alpha", 3, "--targets", "qkv", "out", "--learning-rate", 0.01, "--seed", 5, "--batch-size", 2, "--json") == 0
    assert json.loads(capsys.readouterr().out)["results"]["steps"] == 2
    state = load_model(place / "run")[2]
    assert state["callbacks"]["lora"]["lora"] == {"rank": 2, "alpha": 3.0, "targets": ["qkv", "out"]}
    training = state["config"]["training"]
    assert (training["learning_rate"], training["seed"], training["batch_size"], training["num_epochs"]) == (0.01, 5, 2, 3)
    assert shell("finetune", "--model", place / "first", *small, "--output", place / "run") == 1  # an earlier run
    assert shell("generate", "--model", place / "run", "--prompt", "Sun", "--max-new-tokens", 2, "--device", "cpu") == 0


def test_a_model_of_transformers_learns_and_goes_back(tmp_path, capsys):
    "From a GPT-2 folder with a byte-level tokenizer through LoRA to a GPT-2 folder, with equal logits and ids."
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    inner = tokenizers.ByteLevelBPETokenizer()
    inner.train_from_iterator([TEXT], vocab_size=300, special_tokens=["<|endoftext|>"])
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=310, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)).save_pretrained(tmp_path / "gpt2")
    inner.save(str(tmp_path / "gpt2" / "tokenizer.json"))
    (tmp_path / "new.txt").write_text(NEW)
    assert shell("finetune", "--model", tmp_path / "gpt2", "--data", tmp_path / "new.txt", "--output", tmp_path / "run",
                 "--lora", "--max-steps", 3, "--device", "cpu") == 0
    model, tokenizer, _ = load_model(tmp_path / "run")
    assert isinstance(tokenizer, HFTokenizer)
    assert shell("generate", "--model", tmp_path / "run", "--prompt", "Sun", "--max-new-tokens", 3, "--device", "cpu") == 0
    assert shell("export", "hf", tmp_path / "run", tmp_path / "back") == 0
    assert shell("export", "safetensors", tmp_path / "run", tmp_path / "bundle") == 0
    assert shell("import", tmp_path / "bundle", tmp_path / "again") == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    ids = torch.randint(310, (1, 20))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids), atol=1e-4, rtol=0)
        torch.testing.assert_close(load_model(tmp_path / "again")[0](ids), model(ids))
    for s in "Before we", "  na\u00efve \n\n\t\U0001f600 \u65e5\u672c", "", " " * 9:
        assert tokenizer.encode(s) == inner.encode(s).ids == reader(s)["input_ids"]
        assert tokenizer.decode(tokenizer.encode(s)) == s
        assert sum(tokenizer.byte_lengths[tokenizer.encode(s)]) == len(s.encode())
    assert tokenizer.decode(tokenizer.encode("<|endoftext|>")) == "<|endoftext|>"
    assert load_model(tmp_path / "again")[1].encode("Sun in") == tokenizer.encode("Sun in")
