"""The forecast of a run, against the run; MFU in the log; what the command line shows of both."""
import json

import pytest
import torch

from llmbuilder.advanced import activation_bytes, estimate_cost, saved_bytes
from llmbuilder.checkpoint import read_metrics
from llmbuilder.cli import main
from llmbuilder.config import Config, ModelConfig, load_config
from llmbuilder.model import Transformer, build_model, count_parameters

FAST = "--preset tiny --vocab-size 300 --block-size 16 --model.embedding-dim 16 --model.num-layers 1".split()


@pytest.mark.parametrize("preset", ["tiny", "cpu_small", "gpu_medium", "gpu_large"])
def test_parameters_are_exact(preset):
    config = load_config(preset=preset)
    with torch.device("meta"):
        model = Transformer(config.model)
    assert estimate_cost(config, probe_steps=0).parameters == count_parameters(model) == config.num_parameters


@pytest.mark.parametrize("changes", [
    {}, {"gradient_checkpointing": True}, {"gradient_checkpointing": 2}, {"num_kv_heads": 1}, {"dropout": 0.2},
    {"norm": "layernorm", "mlp": "gelu", "position": "learned", "bias": True, "qk_norm": False, "tie_embeddings": False}])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_are_what_autograd_saves(changes, precision):
    config = dict(vocab_size=200, max_seq_length=24, embedding_dim=48, num_layers=3, num_heads=4) | changes
    x, y = torch.randint(200, (2, 5, 24))
    measured = saved_bytes(build_model(ModelConfig(**config)).train(), x, y, precision)
    assert activation_bytes(ModelConfig(**config), 5, precision) == pytest.approx(measured, rel=0.15)


def test_a_model_that_no_machine_holds_is_estimated_at_once():
    config = Config.from_dict({"model": dict(vocab_size=128_000, max_seq_length=8192, embedding_dim=16_384, num_layers=80,
                                             num_heads=128, num_kv_heads=8), "training": {"batch_size": 1}})
    cost = estimate_cost(config, 10**12)
    assert cost.seconds is None and any("lower batch_size" in line for line in cost.advice)


def test_estimate_command(small_text, capsys):
    assert main(["estimate", "--data", "training_data.txt", *FAST, "--epochs", "2", "--json"]) == 0
    cost = json.loads(capsys.readouterr().out)
    assert cost["parameters"] > 0 and cost["steps"] > 0 and cost["seconds"] > 0 and cost["memory_total"] == sum(cost["memory"].values())
    assert main(["estimate", *FAST, "--probe-steps", "0"]) == 0
    out = capsys.readouterr().out
    assert "parameters:" in out and "time:" not in out and "steps on" not in out
    assert main(["estimate", "--probe-steps", "-1"]) == 2


def test_dry_run_shows_the_forecast_of_the_run(small_text, capsys):
    words = ["train", "model", "--data", "training_data.txt", "--output", "run", "--tokenizer", "tok", "--epochs", "2", *FAST]
    assert main(words) == 0
    capsys.readouterr()
    assert main([*words, "--dry-run", "--json"]) == 0
    cost = json.loads(capsys.readouterr().out)["estimate"]
    start, = [r for r in read_metrics("run") if r["event"] == "start"]
    assert cost["parameters"] == start["parameters"]  # the tokenizer is there now, so the vocabulary is known
    assert cost["steps"] == pytest.approx(start["total_steps"], abs=2)


def test_the_log_says_how_well_the_device_was_used(small_text, capsys):
    words = ["train", "model", "--data", "training_data.txt", "--output", "run", "--epochs", "1", *FAST, "--json"]
    assert main(words) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    records = [r for r in read_metrics("run") if r["event"] == "train"]
    assert 0 < results["mfu"] < 1 and all(0 < r["mfu"] < 1 and r["tokens_per_second"] > 0 for r in records)


def test_a_run_that_ends_early_is_not_charged_for_its_epochs(monkeypatch):
    "max_steps ends it in the first epoch: 10 steps and two evaluations, however many epochs were asked for."
    from llmbuilder import advanced

    monkeypatch.setattr(advanced, "probe_seconds", lambda config, steps: 1.0)
    settings = {"model": dict(vocab_size=50, max_seq_length=10, embedding_dim=16, num_heads=2), "training": dict(
        batch_size=10, max_steps=10, num_epochs=1000, eval_every=5)}
    assert estimate_cost(Config.from_dict(settings), 10_000).seconds == pytest.approx(10 + 2 * 1000 * 0.01 / 3)
