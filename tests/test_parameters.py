"""Every setting has an effect: one run (or model, tokenizer, folder of texts, continuation) with it, one without, and what must differ."""

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch

from llmbuilder.config import DataConfig, GenerationConfig, ModelConfig, TokenizerConfig, TrainingConfig
from llmbuilder.data import TextDataset, find_files, load_documents
from llmbuilder.device import seed_everything
from llmbuilder.generation import TextGenerator
from llmbuilder.model import build_model
from llmbuilder.tokenizer import train_tokenizer
from llmbuilder.training import Trainer, hold_out, train_model

TOKENS = torch.from_numpy(np.random.default_rng(0).integers(0, 24, 16).repeat(3).reshape(16, 3).ravel()).repeat(12)  # 576 ids
SHAPE = dict(vocab_size=24, max_seq_length=8, embedding_dim=16, num_layers=2, num_heads=2)
RUN = dict(batch_size=8, num_epochs=2, learning_rate=1e-2, warmup_steps=0, log_every=1, eval_every=0, save_every=0, max_save_share=1.0)


def model(**options):
    seed_everything(0)
    return build_model(ModelConfig(**{**SHAPE, **options}))


@dataclasses.dataclass
class Run:
    "A finished run, and the few things the table looks at."

    trainer: Trainer
    results: object

    def events(self, kind): return [r for r in self.results.history if r["event"] == kind]
    @property
    def weights(self): return torch.cat([p.detach().ravel() for p in self.trainer.model.parameters()])
    @property
    def lrs(self): return [r["lr"] for r in self.events("train")]
    @property
    def losses(self): return [r["loss"] for r in self.events("train")]
    def files(self, pattern): return sorted(p.name for p in self.results.checkpoint_dir.glob(pattern))


def train(folder, shape=None, **options):
    data = TextDataset.from_tokens(TOKENS, 8)
    config = TrainingConfig(**{**RUN, **options})
    train_set, val_set = hold_out(data, config.val_fraction)
    trainer = Trainer(model(**(shape or {})), train_set, val_set, config, folder, progress=False)
    return Run(trainer, trainer.train())


def weights_differ(a, b): return not torch.equal(a.weights, b.weights)


STEPS = 2 * math.ceil(65 / 8)  # 72 windows, 65 of them for training

# field: (other value, further settings of both runs, what must hold between the plain run and the changed one)
TABLE = {
    "batch_size": (4, {}, lambda a, b: (a.results.steps, b.results.steps) == (STEPS, 2 * math.ceil(65 / 4))),
    "num_epochs": (3, {}, lambda a, b: b.results.epochs == 3 and len(b.files("epoch_*")) == 3),
    "max_steps": (5, {}, lambda a, b: b.results.steps == 5),
    "learning_rate": (1e-3, {}, lambda a, b: b.lrs[0] == pytest.approx(a.lrs[0] / 10)),
    "optimizer": ("sgd", {}, weights_differ),
    "weight_decay": (0.5, {}, lambda a, b: b.weights.norm() < a.weights.norm()),
    "beta1": (0.5, {}, weights_differ),
    "beta2": (0.5, {}, weights_differ),
    "eps": (1e-2, {}, weights_differ),
    "momentum": (0.0, {"optimizer": "sgd"}, weights_differ),
    "muon_learning_rate": (0.001, {"optimizer": "muon"}, weights_differ),
    "max_grad_norm": (1e-3, {"optimizer": "sgd"}, lambda a, b: a.losses[0] == b.losses[0] and a.losses[-1] < b.losses[-1]),
    "warmup_steps": (1, {}, lambda a, b: b.lrs[0] <= a.lrs[0] and b.lrs != a.lrs),
    "scheduler": ("constant", {}, lambda a, b: len(set(b.lrs)) == 1 and len(set(a.lrs)) > 1),
    "min_lr_ratio": (0.9, {}, lambda a, b: a.lrs[-1] < 0.3 * a.lrs[0] and b.lrs[-1] > 0.85 * b.lrs[0]),
    "decay_fraction": (0.8, {"scheduler": "wsd"}, lambda a, b: sum(x < max(b.lrs) for x in b.lrs) > sum(x < max(a.lrs) for x in a.lrs)),
    "save_every": (4, {}, lambda a, b: not a.files("step_*") and b.files("step_*")[0] == "step_00000004.pt"),
    "eval_every": (3, {}, lambda a, b: [r["step"] for r in b.events("eval")][:3] == [3, 6, 9] and len(a.events("eval")) == 2),
    "log_every": (5, {}, lambda a, b: [r["step"] for r in b.events("train")] == [5, 9, 10, 15, 18]),
    "max_checkpoints": (2, {"save_every": 3}, lambda a, b: len(a.files("step_*")) == 5 and b.files("step_*") == ["step_00000015.pt", "step_00000018.pt"]),
    "max_save_share": (0.0, {"save_every": 1}, lambda a, b: b.files("step_*") == ["step_00000009.pt", "step_00000018.pt"] and len(a.files("step_*")) == 5),
    "gradient_accumulation_steps": (2, {}, lambda a, b: b.results.steps == 2 * math.ceil(65 / 16)),
    "mixed_precision": ("bf16", {}, lambda a, b: a.losses != b.losses and abs(a.losses[0] - b.losses[0]) < 0.1),
    "early_stopping_patience": (2, {"learning_rate": 1e-12, "eval_every": 1, "early_stopping_min_delta": 0.1},
                                lambda a, b: a.results.steps == STEPS and b.results.steps == 3 and b.results.status == "finished"),
    "early_stopping_min_delta": (9.0, {"early_stopping_patience": 2, "eval_every": 1}, lambda a, b: b.results.steps == 3 < a.results.steps),
    "val_fraction": (0.5, {}, lambda a, b: len(b.trainer.val_dataset) > len(a.trainer.val_dataset)),
    "shuffle": (False, {}, lambda a, b: a.losses[0] != b.losses[0]),
    "ema_decay": (0.9, {}, lambda a, b: a.losses == b.losses and a.results.final_val_loss != b.results.final_val_loss),
    "seed": (2, {}, lambda a, b: a.losses[0] != b.losses[0] and b.results.seed == 2),
    "device": ("cpu", {}, lambda a, b: b.trainer.device.type == "cpu"),
}
ELSEWHERE = {"wandb_project": "test_wandb_offline", "compile": "test_compile", "strategy": "test_strategy",
             "tensorboard": "test_tensorboard"}


def test_every_training_field_is_in_the_table():
    assert {f.name for f in dataclasses.fields(TrainingConfig)} == {*TABLE, *ELSEWHERE}
    assert all(name in globals() for name in ELSEWHERE.values())


@pytest.mark.parametrize("field", TABLE)
def test_training_field(field, tmp_path):
    value, common, holds = TABLE[field]
    assert holds(train(tmp_path / "plain", **common), train(tmp_path / "changed", **{**common, field: value}))


def test_device_that_is_not_there(tmp_path):
    if torch.cuda.is_available(): pytest.skip("there is a CUDA device here")
    with pytest.raises(Exception, match="cuda"): train(tmp_path, device="cuda")


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = train(tmp_path, wandb_project="course")
    assert run.results.status == "finished" and list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(tmp_path, tensorboard=True, log_every=1)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    points = {e.step: e.value for e in events.Scalars("train/loss")}
    logged = {r["step"]: r["loss"] for r in run.results.history if r["event"] == "train"}
    assert points == pytest.approx(logged, rel=1e-6) and "eval/val_loss" in events.Tags()["scalars"]


def test_tensorboard_missing_is_one_sentence(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(Exception, match=r"install llmbuilder\[tensorboard\]"): train(tmp_path, tensorboard=True)
    assert not list(tmp_path.iterdir())


def test_metrics_csv_is_always_there_and_says_what_the_log_says(tmp_path):
    import csv

    from llmbuilder.training import CsvLogger, TensorBoardLogger, WandbLogger

    run = train(tmp_path, log_every=1)
    with open(tmp_path / "metrics.csv", newline="") as file: rows = list(csv.DictReader(file))
    logged = [r for r in run.results.history if r["event"] in ("train", "eval")]
    assert [(r["event"], int(r["step"]), r["loss"], r["val_loss"]) for r in rows] == [
        (r["event"], r["step"], *("" if r.get(n) is None else str(r[n]) for n in ("loss", "val_loss"))) for r in logged]
    for logger in CsvLogger, TensorBoardLogger, WandbLogger:
        assert len(__import__("inspect").getsource(logger).splitlines()) < 30


def test_wandb_missing_is_one_sentence(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(Exception, match=r"install llmbuilder\[wandb\]"): train(tmp_path, wandb_project="course")
    assert not list(tmp_path.iterdir())


def test_compile(tmp_path, monkeypatch):
    "The run goes through torch.compile and ends as the eager one does; what the real backend computes is in test_model.py."
    whole = torch.nn.Module.compile
    monkeypatch.setattr("llmbuilder.device._compile_problem", lambda kind: None)  # this backend needs no C++ compiler
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: whole(self, backend="aot_eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    eager, compiled = train(tmp_path / "a", max_steps=2), train(tmp_path / "b", max_steps=2, compile=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert eager.losses == pytest.approx(compiled.losses, abs=1e-4)
    assert set(eager.trainer.model.state_dict()) == set(compiled.trainer.model.state_dict())


def test_strategy(tmp_path):
    "It needs several processes (tests/test_processes.py); alone it is refused."
    with pytest.raises(Exception, match='strategy "ddp" needs several processes: start them with torchrun'):
        train(tmp_path, strategy="ddp")
    assert not list(tmp_path.iterdir())


# The model's fields: what each must change, looked at without training.
X = torch.arange(8)[None] % 24
MODEL_TABLE = {
    "vocab_size": (30, {}, lambda a, b: b(X).shape[-1] == 30),
    "max_seq_length": (16, {}, lambda a, b: b(X.repeat(1, 2)).shape[1] == 16),
    "embedding_dim": (32, {}, lambda a, b: b.embed.weight.shape[1] == 32),
    "num_layers": (3, {}, lambda a, b: len(b.blocks) == 3),
    "num_heads": (4, {}, lambda a, b: not torch.allclose(a(X), b(X))),
    "num_kv_heads": (1, {}, lambda a, b: size(b) < size(a)),
    "head_dim": (16, {}, lambda a, b: size(b) > size(a)),
    "hidden_dim": (96, {}, lambda a, b: size(b) != size(a)),
    "norm": ("layernorm", {}, lambda a, b: not torch.allclose(a(X), b(X))),
    "norm_eps": (0.1, {}, lambda a, b: not torch.allclose(a(X), b(X))),
    "position": ("learned", {}, lambda a, b: size(b) == size(a) + 8 * 16),
    "rope_theta": (100.0, {"head_dim": 8}, lambda a, b: not torch.equal(a(X), b(X))),
    "qk_norm": (False, {}, lambda a, b: size(b) < size(a)),
    "mlp": ("gelu", {}, lambda a, b: size(b) != size(a)),
    "bias": (True, {}, lambda a, b: size(b) > size(a)),
    "tie_embeddings": (False, {}, lambda a, b: size(b) == size(a) + 24 * 16),
    "dropout": (0.5, {}, lambda a, b: torch.equal(a.train()(X), a(X)) and not torch.equal(b.train()(X), b(X))),
    "init_std": (0.2, {}, lambda a, b: b.embed.weight.std() > 5 * a.embed.weight.std()),
    "gradient_checkpointing": (True, {}, lambda a, b: saved_bytes(b) < saved_bytes(a) and torch.equal(a(X), b(X))),
}


def size(m): return sum(p.numel() for p in m.parameters())


def saved_bytes(m):
    "Bytes that autograd keeps for the backward pass."
    total, x = [], X.repeat(16, 1)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: total.append(t.numel() * t.element_size()) or t, lambda t: t):
        m.train()(x, x)
    return sum(total)


def test_every_model_field_is_in_the_table():
    assert {f.name for f in dataclasses.fields(ModelConfig)} == set(MODEL_TABLE)


@pytest.mark.parametrize("field", MODEL_TABLE)
def test_model_field(field):
    value, common, holds = MODEL_TABLE[field]
    assert holds(model(**common).eval(), model(**{**common, field: value}).eval())


# The tokenizer's fields: two tokenizers of one text.
NUMBERED = ["In 1984 the harbour held 1984 boats, and by 1991 it held 1991.\n" * 30, "A rare \u03b6 once.\n", "The quay was quiet.\n" * 300]
TOKENIZER_TABLE = {
    "vocab_size": (280, lambda a, b: (a.vocab_size > 280) and b.vocab_size == 280),
    "model_type": ("char", lambda a, b: b.model_type == "char" and len(b.encode("harbour")) == 7 > len(a.encode("harbour"))),
    "character_coverage": (1.0, lambda a, b: (len(a.encode("\u03b6")), len(b.encode("\u03b6"))) == (2, 1)),  # bytes, then a piece
    "max_training_bytes": (200, lambda a, b: b.vocab_size < a.vocab_size),
    "split_digits": (True, lambda a, b: len(b.encode("1984")) == 4 > len(a.encode("1984"))),
}


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(TokenizerConfig)])
def test_tokenizer_field(field):
    value, holds = TOKENIZER_TABLE[field]
    assert holds(train_tokenizer(NUMBERED, vocab_size=400), train_tokenizer(NUMBERED, **{"vocab_size": 400, field: value}))


# The data's fields: what is read from one folder.
SENTENCE = "The boats lay close together on the grey water while the old keeper counted the ropes {} more.\n"
FILES = {"a.txt": SENTENCE.format("once"), "b.txt": SENTENCE.format("once"), "c.txt": SENTENCE.format("twice"), "short.txt": "ab\n",
         "blank.txt": "up\n\n\n\n\ndown\n", "crlf.txt": "one\r\ntwo\r\n", "accent.txt": "cafe\u0301 \ufb01sh\n", "page.md": "# Quay\n"}
DATA_TABLE = {
    "extensions": ((".txt", ".md"), lambda a, b: sorted({*b} - {*a}) == ["# Quay\n"]),
    "text_field": ("body", lambda a, b: True),  # of .jsonl files: below
    "clean": (False, lambda a, b: "caf\u00e9 \ufb01sh\n" in a and FILES["accent.txt"] in b and FILES["blank.txt"] in b),
    "unicode_form": ("NFKC", lambda a, b: "caf\u00e9 \ufb01sh\n" in a and "caf\u00e9 fish\n" in b),
    "newlines": ("lf", lambda a, b: FILES["crlf.txt"] in a and "one\ntwo\n" in b),
    "max_blank_lines": (0, lambda a, b: "up\n\n\ndown\n" in a and "up\ndown\n" in b),
    "deduplicate": (False, lambda a, b: (a.count(FILES["a.txt"]), b.count(FILES["a.txt"])) == (1, 2)),
    "near_duplicates": (0.5, lambda a, b: FILES["c.txt"] in a and FILES["c.txt"] not in b),
    "min_chars": (5, lambda a, b: "ab\n" in a and "ab\n" not in b),
}


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(DataConfig)])
def test_data_field(field, tmp_path):
    for name, content in FILES.items(): (tmp_path / name).write_bytes(content.encode())
    value, holds = DATA_TABLE[field]
    plain, changed = ([*load_documents(find_files(tmp_path, c), c)] for c in (DataConfig(), DataConfig(**{field: value})))
    assert holds(plain, changed)


def test_text_field_of_a_jsonl_file(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"text": "one", "body": "two"}\n')
    assert [*load_documents([path])] == ["one"] and [*load_documents([path], DataConfig(text_field="body"))] == ["two"]


# The generation's fields: two continuations of one prompt by one model.
DICE = dict(max_new_tokens=40, seed=3, temperature=2.0)
GENERATION_TABLE = {
    "max_new_tokens": (5, {}, lambda a, b: a.startswith(b) and len(b) < len(a)),
    "temperature": (0.0, {}, lambda a, b: a != b),
    "top_k": (1, {}, lambda a, b: b == write(temperature=0.0) != a),
    "top_p": (0.01, {}, lambda a, b: b == write(temperature=0.0) != a),
    "min_p": (1.0, {}, lambda a, b: b == write(temperature=0.0) != a),
    "repetition_penalty": (50.0, {"temperature": 0.3}, lambda a, b: doubled(a) > doubled(b) == 0),
    "stop": (("8",), {}, lambda a, b: a.startswith(b + "8") and "8" not in b),
    "seed": (4, {}, lambda a, b: a != b and a == write() and b == write(seed=4)),
}


@functools.cache
def writer():
    tokenizer = train_tokenizer(NUMBERED, model_type="char")
    seed_everything(0)
    return TextGenerator(build_model(ModelConfig(**SHAPE | {"vocab_size": tokenizer.vocab_size, "max_seq_length": 64, "init_std": 0.3})), tokenizer)


def doubled(text): return sum(x == y and x.isascii() for x, y in zip(text, text[1:]))
def write(**settings): return writer().generate("T", **{**DICE, **settings})


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(GenerationConfig)])
def test_generation_field(field):
    value, common, holds = GENERATION_TABLE[field]
    assert holds(write(**common), write(**{**common, field: value}))


def test_results_carry_the_guides_attributes(tmp_path):
    run = train(tmp_path)
    for name in ("final_train_loss", "final_val_loss", "best_val_loss", "training_time"):
        assert isinstance(getattr(run.results, name), float) and math.isfinite(getattr(run.results, name))
    assert run.results.best_checkpoint.exists() and run.results.latest_checkpoint.exists()
    assert run.results.final_val_loss < math.log(24)


def test_train_model_without_a_folder_says_where_it_saves(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    results = train_model(model(), TextDataset.from_tokens(TOKENS, 8), TrainingConfig(num_epochs=1))
    assert results.output_dir.parent.name == "runs" and results.latest_checkpoint.exists()
    assert str(results.output_dir) in capsys.readouterr().err
