"""Several processes that train one model: torchrun, gloo, two of them on this machine."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from llmbuilder.checkpoint import RunFolder, find_checkpoint, load_checkpoint, read_metrics, verify_checkpoint
from llmbuilder.cli import main

SETTINGS = ("--preset tiny --vocab-size 300 --block-size 16 --model.embedding-dim 32 --model.num-layers 2 --model.dropout 0 "
            "--batch-size 6 --training.gradient-accumulation-steps 2 --training.scheduler constant --training.warmup-steps 0 "
            "--training.log-every 1 --training.eval-every 3 --training.device cpu").split()
TRAIN = ["train", "model", "--data", "training_data.txt", "--epochs", "3", *SETTINGS]


def torchrun(*words):
    "The command in two processes; one that hangs is ended."
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "llmbuilder"]
    return subprocess.Popen([*command, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process, seconds=240):
    "Exit code, stdout, stderr."
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        raise
    return process.returncode, out, err


def curve(folder, event, value):
    return {r["step"]: r[value] for r in read_metrics(folder) if r["event"] == event}


def test_two_processes_are_the_run_of_one(small_text):
    "The same losses with DDP, then resumed with FSDP, then resumed alone; the same checkpoints."
    assert main([*TRAIN, "--output", "one"]) == 0
    steps = verify_checkpoint(find_checkpoint("one")).step
    code, out, err = finished(torchrun(*TRAIN, "--output", "two", "--strategy", "ddp", "--training.max-steps", str(steps // 3)))
    assert code == 0, err
    assert out.count("status") == 1 and err.count("training ") == 1  # one process speaks
    assert len(load_checkpoint(find_checkpoint("two"))["rng"]) == 2
    resume = ["train", "resume", "two", "--max-steps"]
    code, _, err = finished(torchrun(*resume, str(2 * steps // 3), "--strategy", "fsdp"))
    assert code == 0, err
    assert verify_checkpoint(find_checkpoint("two")).step == 2 * steps // 3
    assert main([*resume, str(steps)]) == 0

    for event, value in ("train", "loss"), ("eval", "val_loss"), ("train", "tokens"), ("train", "grad_norm"):
        ours, theirs = curve("two", event, value), curve("one", event, value)
        assert theirs.items() and set(theirs) <= set(ours)
        assert {s: ours[s] for s in theirs} == pytest.approx(theirs, abs=1e-4), value
    one, two = (load_checkpoint(find_checkpoint(name)) for name in ("one", "two"))
    assert one.keys() == two.keys() and one["optimizer"]["state"].keys() == two["optimizer"]["state"].keys()
    for name, value in one["model"].items():
        torch.testing.assert_close(value, two["model"][name], atol=2e-3, rtol=1e-3)


def children(pid):
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for child processes in /proc")
def test_one_process_killed_ends_all_and_leaves_a_good_checkpoint(small_text):
    process = torchrun(*TRAIN, "--output", "run", "--epochs", "100000", "--training.save-every", "1", "--training.max-save-share", "1")
    end = time.monotonic() + 200
    while RunFolder("run").status().get("step", 0) < 3:
        assert process.poll() is None and time.monotonic() < end, finished(process, 1)
        time.sleep(0.1)
    main_pid = RunFolder("run").status()["pid"]
    (other,) = [pid for pid in children(process.pid) if pid != main_pid and b"llmbuilder" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(other, signal.SIGKILL)
    code, _, err = finished(process, 100)
    assert code != 0 and err.count("error: another process of this run is gone") == 1, err
    assert RunFolder("run").status()["status"] == "failed"
    assert verify_checkpoint(find_checkpoint("run")).step >= 3


@pytest.mark.parametrize("words, said", [
    (["--batch-size", "7"], "batch_size 7 can't be split evenly among 2 processes: make it a multiple of 2"),
    (["--strategy", "fsdp", "--training.optimizer", "muon"], 'optimizer "muon" works on whole weights'),
    (["--strategy", "fsdp", "--training.ema-decay", "0.9"], "ema_decay works on whole weights"),
    (["--strategy", "fsdp", "--training.compile"], "compile works on whole weights"),
    (["--strategy", "fsdp", "--training.mixed-precision", "fp16"], 'mixed_precision "fp16" works on whole weights'),
    (["--strategy", "zero"], "ddp"),
])  # fmt: skip
def test_what_cannot_be_shared_out_is_one_sentence(small_text, monkeypatch, capsys, words, said):
    for variable, value in ("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"):
        monkeypatch.setenv(variable, value)
    words = [*TRAIN[:-2], "--training.device", "cpu", "--output", "run", *words]
    flags = [w for w in words if w.startswith("--")]
    for flag in {f for f in flags if flags.count(f) > 1}:  # the later one counts
        i = words.index(flag)
        del words[i:i + 2]
    assert main(words) in (1, 2)
    err = capsys.readouterr().err
    assert said in err and err.count("error:") == 1 and not Path("run").exists()


def test_a_strategy_without_torchrun_is_one_sentence(small_text, capsys):
    assert main([*TRAIN, "--output", "run", "--strategy", "ddp"]) == 1
    assert 'strategy "ddp" needs several processes: start them with torchrun' in capsys.readouterr().err
