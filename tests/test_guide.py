"""Every command and snippet of the training guide, pasted as it stands, in a folder with nothing but training_data.txt.

The snippets are the files in `guide/`, word for word; `docs/train_model.py` is the guide's script.
"""
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SNIPPETS = Path(__file__).resolve().parent / "guide"
GUIDE = ROOT.parent / "shared" / "training-guide.md"
posix = pytest.mark.skipif(os.name == "nt", reason="the guide's commands are written for a POSIX shell")


def snippet(name):
    return (SNIPPETS / name).read_text(encoding="utf-8")


def shell(name, cwd):
    "A file of commands, pasted into a shell whose `python` and `llmbuilder` are those of these tests."
    bin_folder = cwd / "test bin"
    bin_folder.mkdir()
    for command, module in ("python", ""), ("llmbuilder", "-m llmbuilder"):
        script = bin_folder / command
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        script.chmod(0o755)
    env = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-e", "-c", snippet(name)], cwd=cwd, env=env, capture_output=True, text=True,
                          encoding="utf-8", stdin=subprocess.DEVNULL, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.skipif(not GUIDE.exists(), reason="the guide lies beside the repository only where it is developed")
def test_the_snippets_are_the_guides():
    blocks = re.findall(r"```(?:bash|python)\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)
    ours = [path.read_text(encoding="utf-8") for path in SNIPPETS.iterdir() if path.suffix in (".py", ".sh")]
    ours.append((ROOT / "docs" / "train_model.py").read_text(encoding="utf-8"))
    assert sorted(ours) == sorted(blocks)


@posix
@pytest.mark.slow
def test_train_model_command(small_text):
    folder = small_text.parent
    done = shell("train_model.sh", folder)
    assert re.search(r"^validation loss: +\d+\.\d+ nats per token \(\d+\.\d+ bits per byte\)$", done.stdout, re.M)
    assert "Traceback" not in done.stderr
    made = {p.name for p in (folder / "model" / "checkpoints").iterdir()}
    assert {"latest_checkpoint.pt", "best_checkpoint.pt", "epoch_0010.pt"} <= made
    assert (folder / "tokenizer" / "tokenizer.model").exists()
    assert {p.name for p in folder.iterdir()} == {"training_data.txt", "tokenizer", "model", "test bin"}


@posix
@pytest.mark.slow
def test_model_test_workflow(folder):
    shutil.copytree(ROOT / "Model_Test", folder / "Model_Test", ignore=shutil.ignore_patterns("output"))
    (folder / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "train_model.py", folder / "docs")
    done = shell("model_test.sh", folder)
    assert "Sample generation:\nCybersecurity is important because" in done.stdout
    assert "\nwhat is Cybersecurity" in done.stdout  # from another process, paths written with backslashes
    output = folder / "Model_Test" / "output"
    made = {p.name for p in (output / "checkpoints").iterdir()}
    assert {"latest_checkpoint.pt", "best_checkpoint.pt", *(f"epoch_{n:04d}.pt" for n in range(1, 6))} <= made
    assert (output / "tokenizer" / "tokenizer.model").exists()


@pytest.fixture(scope="module")
def quick_start(tmp_path_factory, text):
    "The names that the quick start leaves behind; it ran in a fresh folder."
    folder, before = tmp_path_factory.mktemp("quick start"), Path.cwd()
    (folder / "training_data.txt").write_text(text, encoding="utf-8")
    os.chdir(folder)
    try:
        names = {}
        exec(compile(snippet("quick_start.py"), "quick_start.py", "exec"), names)
        yield names
    finally:
        os.chdir(before)


def test_quick_start(quick_start):
    results = quick_start["results"]
    assert results.status == "finished" and math.isfinite(results.final_val_loss)
    assert quick_start["dataset"].block_size == 256
    (run,) = Path("runs").iterdir()  # a Trainer without a folder makes a fresh one
    assert (run / "checkpoints" / "best_checkpoint.pt").exists()


def test_monitoring(quick_start, capsys):
    config = quick_start["config"].training
    config.num_epochs = 1
    train_dataset, val_dataset = quick_start["dataset"].split(0.1)
    names = dict(model=quick_start["model"], train_dataset=train_dataset, val_dataset=val_dataset, training_config=config)
    exec(snippet("monitoring.py"), names)
    shown = capsys.readouterr().out
    for line in "Final training loss", "Final validation loss", "Best validation loss":
        assert re.search(rf"^{line}: \d+\.\d{{4}}$", shown, re.M)
    assert re.search(r"^Training time: \d", shown, re.M)


def test_training_config():
    names = {}
    exec(snippet("training_config.py"), names)
    assert names["config"].warmup_steps == 1000 and names["config"].wandb_project is None


def test_techniques_and_troubleshooting():
    import llmbuilder

    names = {"TrainingConfig": llmbuilder.TrainingConfig}
    for name in "mixed_precision.py", "lr_scheduling.py", "gradient_checkpointing.py":
        exec(snippet(name), names)
    assert names["model_config"].gradient_checkpointing is True
    for name in "out_of_memory.py", "slow_convergence.py", "unstable_training.py":
        exec(snippet(name), names)
    config = names["config"]
    assert (config.batch_size, config.gradient_accumulation_steps, config.optimizer) == (8, 4, "adam")
    assert (config.learning_rate, config.max_grad_norm, config.weight_decay) == (1e-4, 0.5, 0.1)


def test_assignments_reach_the_run(small_text):
    "The troubleshooting assigns to a config after the model was built: the next run uses the new values."
    import llmbuilder as lb
    from llmbuilder.data import TextDataset

    config = lb.load_config(preset="tiny", vocab_size=400, max_steps=3)
    model = lb.build_model(config.model)
    dataset = TextDataset(small_text, block_size=16, config=config)
    config.training.batch_size = 2
    model.config.gradient_checkpointing = True
    with pytest.raises(lb.ConfigError, match="built"):
        model.config.num_layers = 3
    results = lb.train_model(model, dataset, config.training)
    assert results.tokens == 3 * 2 * 16
