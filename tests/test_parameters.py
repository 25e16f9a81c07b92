"""Every field of TrainingConfig and ModelConfig has an effect: one run with it, one without, and what must differ."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from llmbuilder.config import ModelConfig, TrainingConfig
from llmbuilder.data import TextDataset
from llmbuilder.device import seed_everything
from llmbuilder.model import build_model
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
ELSEWHERE = {"wandb_project": "test_wandb_offline", "compile": "test_compile"}


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


def test_wandb_missing_is_one_sentence(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(Exception, match=r"install llmbuilder\[wandb\]"): train(tmp_path, wandb_project="course")
    assert not list(tmp_path.iterdir())


def test_compile(tmp_path, capsys):
    "Compiled and eager runs agree; where no compiler is at hand the notice says so."
    eager, compiled = train(tmp_path / "a", max_steps=2), train(tmp_path / "b", max_steps=2, compile=True)
    told = "compile" in capsys.readouterr().err
    assert told or compiled.trainer.model._compiled_call_impl is not None
    assert eager.losses == pytest.approx(compiled.losses, abs=1e-4)


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
