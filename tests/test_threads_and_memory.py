"""What a run leaves alone: the helper threads of others, and memory that it does not need now."""

import gc
import sys
import time
from pathlib import Path

import pytest
import torch

from llmbuilder import checkpoint, pipeline
from llmbuilder.config import ModelConfig, TrainingConfig
from llmbuilder.data import TextDataset
from llmbuilder.model import build_model
from llmbuilder.training import Callback, Trainer

libgomp = pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc, and helpers of libgomp")

HELPERS = """
import os, time, torch
torch.set_num_threads(2)
torch.ones(1_000_000).isfinite().all()  # large enough for a helper
threads = lambda: len(os.listdir("/proc/self/task"))
before = threads()
"""

TRAINER = """
from llmbuilder.config import ModelConfig, TrainingConfig
from llmbuilder.data import TextDataset
from llmbuilder.model import build_model
from llmbuilder.training import Trainer
config = ModelConfig(vocab_size=16, max_seq_length=8, embedding_dim=16, num_layers=1, num_heads=2)
data = TextDataset.from_tokens([i % 16 for i in range(200)], 8)
trainer = Trainer(build_model(config), data, None, TrainingConfig(max_steps=3, batch_size=2), "run", progress=False)
"""


@libgomp
def test_a_save_starts_no_helpers_of_its_own(run):
    "Two teams of helpers on two cores put training's to sleep between any two operations."
    done = run("-c", HELPERS + """
from pathlib import Path
from llmbuilder.checkpoint import CheckpointWriter
writer = CheckpointWriter(Path("checkpoints"), keep=2)
writer.submit({"model": {"weight": torch.ones(1_000_000)}, "counters": {"step": 1}})
writer.flush()
print(threads() - before, len(list(Path("checkpoints").iterdir())))
""")
    assert done.stdout.split() == ["1", "1"], done.stdout + done.stderr  # the writer itself, and its file


@pytest.mark.parametrize("mine, looks", [({}, "30000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "active"}, "None")])
def test_import_says_how_long_threads_look(run, monkeypatch, mine, looks):
    "Before torch is loaded, and only where nobody has said it."
    for name in "GOMP_SPINCOUNT", "OMP_WAIT_POLICY":
        monkeypatch.delenv(name, raising=False)
    for name, value in mine.items():
        monkeypatch.setenv(name, value)
    done = run("-c", "import llmbuilder, os, sys; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)")
    assert done.stdout.split() == [looks, "False"], done.stdout + done.stderr


@libgomp
def test_helpers_soon_sleep_when_nothing_comes(run, monkeypatch):
    "Processor time of all threads while the calling one rests after each operation: 3 ms of looking, or a tenth."
    used = {}
    for looks in "300000", "30000":
        monkeypatch.setenv("GOMP_SPINCOUNT", looks)
        done = run("-c", HELPERS + """
start = time.process_time()
for _ in range(100):
    torch.ones(1_000_000).isfinite().all()
    time.sleep(0.02)
print(time.process_time() - start)
""")
        used[looks] = float(done.stdout)
    assert used["30000"] < used["300000"] / 1.2, used


@libgomp
def test_a_run_in_the_background_sends_the_callers_helpers_home(run):
    done = run("-c", TRAINER + HELPERS + """
trainer.start()
trainer.wait()
while any(t.name.startswith("llmbuilder") for t in __import__("threading").enumerate()): time.sleep(0.05)
after = threads()
from llmbuilder.device import release_helpers
assert release_helpers()
print(after - threads(), trainer.results.steps)
""")
    assert done.stdout.splitlines()[-1].split() == ["0", "3"], done.stdout + done.stderr  # none was left to send


@libgomp
def test_the_copy_of_a_state_goes_back_to_the_system(run):
    "In the heap, which keeps what is freed, it would stay with the process and leave holes."
    done = run("-c", """
import re, torch
from pathlib import Path
from llmbuilder.checkpoint import copy_state
from llmbuilder.device import keep_freed_memory
keep_freed_memory()
resident = lambda: int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
state = {"model": [torch.ones(1_000_000) for _ in range(20)]}
before = resident()
copied = copy_state(state)
meanwhile, between = resident(), torch.ones(1_000_000)
assert all(torch.equal(a, b) for a, b in zip(copied["model"], state["model"]))
del copied
print(meanwhile - before, resident() - before)
""")
    more, left = map(int, done.stdout.split())
    assert more >= 70 and left <= 20, done.stdout + done.stderr  # 76 MB of copies, 4 of what came between


def test_a_save_is_copied_when_the_one_before_is_written(tmp_path, monkeypatch):
    "Else two copies of the state lie in memory."
    happened, write_all = [], checkpoint._write_all

    def slowly(*args):
        time.sleep(0.1)
        write_all(*args)
        happened.append("written")

    monkeypatch.setattr(checkpoint, "_write_all", slowly)
    monkeypatch.setattr(checkpoint, "copy_state", lambda value: happened.append("copied") or value)
    writer = checkpoint.CheckpointWriter(tmp_path, keep=2)
    for step in 1, 2, 3:
        writer.submit({"model": {"weight": torch.ones(2)}, "counters": {"step": step}})
    writer.close()
    assert happened == ["copied", "written"] * 3


def test_gradients_are_gone_when_the_model_is_evaluated(tmp_path):
    "The evaluation gets their memory."
    seen = []

    class Look(Callback):
        name = "look"

        def on_evaluate(self, trainer, record):
            seen.append([p.grad is None for p in trainer.model.parameters()])

    config = ModelConfig(vocab_size=16, max_seq_length=8, embedding_dim=16, num_layers=1, num_heads=2)
    data = TextDataset.from_tokens([i % 16 for i in range(200)], 8)
    settings = TrainingConfig(max_steps=3, eval_every=1, batch_size=2)
    Trainer(build_model(config), data, data, settings, Path(tmp_path) / "run", callbacks=[Look()], progress=False).train()
    assert len(seen) == 3 and all(map(all, seen))


def test_nothing_of_the_trainer_is_left_when_the_pipeline_loads_its_model(tmp_path, monkeypatch):
    "A trainer refers to itself in places; with its optimizer it is three times the model's size."
    trainers = lambda: sum(type(o) is Trainer for o in gc.get_objects())
    left, load = [], pipeline.load_model
    monkeypatch.setattr(pipeline, "load_model", lambda *args: left.append(trainers()) or load(*args))
    (tmp_path / "text.txt").write_text("All the world's a stage, and all the men and women merely players. " * 30, encoding="utf-8")
    config = {"vocab_size": 280, "block_size": 8, "model": {"embedding_dim": 16, "num_layers": 1, "num_heads": 2},
              "training": {"max_steps": 3, "batch_size": 2}}
    gc.collect()
    before = trainers()
    gc.disable()
    try: pipeline.train(tmp_path / "text.txt", tmp_path / "run", config)
    finally: gc.enable()
    assert left == [before]
