"""Cases 1 to 15 of RELIABILITY.md: checkpoints and resume."""
import json
import logging
import os
import queue
import random
import re
import stat
import time
from pathlib import Path

import faults
import pytest
import torch
from faults import at_step, change, differences, flip, listener, log_of, make_trainer, snapshot, state_of, tensor_offset, truncate

from llmbuilder import checkpoint as ck
from llmbuilder.checkpoint import CheckpointError, RunFolder, find_checkpoint, list_checkpoints, load_checkpoint, save_checkpoint
from llmbuilder.config import ConfigError, LLMBuilderError
from llmbuilder.training import TrainingError

FIXTURES = Path(__file__).parent.parent / "fixtures"


@pytest.fixture
def notices(caplog, monkeypatch):
    "The notices so far, as one text."
    monkeypatch.setattr(logging.getLogger("llmbuilder"), "propagate", True)
    caplog.set_level(logging.INFO, logger="llmbuilder")
    return lambda: "\n".join(r.message for r in caplog.records)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "A finished run of 3 epochs that was never stopped. Not to be changed."
    folder = tmp_path_factory.mktemp("finished") / "run"
    make_trainer(folder).train()
    return folder


@pytest.fixture
def run_folder(finished, tmp_path):
    "A copy of the finished run, to damage."
    import shutil

    return Path(shutil.copytree(finished, tmp_path / "run"))


def assert_same_run(folder, undisturbed):
    "Weights, optimizer, scheduler, counters, random states and log are those of the run that was never stopped."
    assert differences(state_of(folder), state_of(undisturbed)) == []
    assert log_of(folder) == log_of(undisturbed)


# ------------------------------------------------------------------------------------------------- resume is exact
def test_case_01_stop_at_the_end_of_an_epoch_and_resume(tmp_path, finished):
    first = make_trainer(tmp_path / "run", [listener(on_epoch=lambda trainer, epoch: trainer.stop() if epoch == 1 else None)])
    assert first.train().status == "stopped"
    assert first.state.epoch == 1 and first.state.samples == 0
    results = make_trainer(tmp_path / "run", resume="auto").train()
    assert results.status == "finished" and results.epochs == 3
    assert_same_run(tmp_path / "run", finished)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_case_02_stop_in_the_middle_of_an_epoch_twice(tmp_path, optimizer):
    "With accumulation and dropout, under a cosine schedule; the log is compared too."
    options = {"gradient_accumulation_steps": 2, "dropout": 0.2, "optimizer": optimizer, "eval_every": 4, "log_every": 3}
    whole = make_trainer(tmp_path / "whole", **options)
    total = whole.train().steps
    for i, step in enumerate((2, 7)):
        part = make_trainer(tmp_path / "parts", [at_step(step, lambda t: t.stop())], resume="auto", **options)
        assert part.train().status == "stopped" and part.state.step == step
        assert part.state.samples % part.batch_windows == 0 and part.state.samples  # in the middle of an epoch
    assert make_trainer(tmp_path / "parts", resume="auto", **options).train().steps == total
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_case_02_stop_while_the_learning_rate_still_rises(tmp_path):
    options = {"num_epochs": 6, "warmup_steps": 8, "scheduler": "wsd"}
    make_trainer(tmp_path / "whole", **options).train()
    make_trainer(tmp_path / "parts", [at_step(2, lambda t: t.stop())], **options).train()
    make_trainer(tmp_path / "parts", resume="auto", **options).train()
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_case_03_all_random_states_come_back(tmp_path):
    "A callback draws from every global generator at each step; the numbers go on as if nothing had happened."
    import numpy as np

    def draws(folder, stop=()):
        drawn = {}

        def draw(trainer, record):
            drawn[record["step"]] = (random.random(), float(np.random.rand()), float(torch.rand(())))
            if record["step"] in stop:
                trainer.stop()

        for _ in range(len(stop) + 1):
            make_trainer(folder, [listener(on_step=draw)], resume="auto", dropout=0.1).train()
        return drawn

    assert draws(tmp_path / "whole") == draws(tmp_path / "parts", stop=(7, 20))
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_case_03_drawing_a_batch_moves_no_global_generator():
    from llmbuilder.device import rng_state
    from llmbuilder.training import epoch_order, fetch

    data, before = faults.windows(), rng_state()
    for epoch in range(3):
        for indices in epoch_order(len(data), epoch, 1337).split(4):
            fetch(data, indices)
    assert differences(rng_state(), before) == []


def test_case_04_average_live_learning_rate_and_early_stopping_come_back(tmp_path):
    options = {"ema_decay": 0.9, "early_stopping_patience": 3, "early_stopping_min_delta": 10.0, "eval_every": 4, "num_epochs": 9}
    faster = lambda: at_step(3, lambda t: t.set_lr_multiplier(0.5))
    whole = make_trainer(tmp_path / "whole", [faster()], **options).train()
    assert whole.status == "finished" and whole.epochs < 9  # the first evaluation counts as better, three more do not
    make_trainer(tmp_path / "parts", [faster(), at_step(6, lambda t: t.stop())], **options).train()
    second = make_trainer(tmp_path / "parts", [at_step(9, lambda t: t.stop())], resume="auto", **options)
    second.train()
    assert second.control.lr_multiplier == 0.5 and second.state.bad_evals > 0
    make_trainer(tmp_path / "parts", resume="auto", **options).train()
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    state = state_of(tmp_path / "parts")
    assert state["ema"] is not None and differences(state["ema"], state["model"])


def test_case_04_the_fp16_scaler_comes_back(tmp_path, fp16):
    options = {"mixed_precision": "fp16"}
    make_trainer(tmp_path / "whole", **options).train()
    make_trainer(tmp_path / "parts", [at_step(9, lambda t: t.stop())], **options).train()
    scaler = state_of(tmp_path / "parts")["scaler"]
    assert scaler["scale"] > 1 and scaler["_growth_tracker"] > 0
    make_trainer(tmp_path / "parts", resume="auto", **options).train()
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_case_04_two_callbacks_of_one_name_keep_a_state_each(tmp_path):
    from llmbuilder.training import Callback

    class Counter(Callback):
        def __init__(self, by): self.by, self.n = by, 0
        def on_step(self, trainer, record): self.n += self.by
        def state_dict(self): return {"n": self.n}
        def load_state_dict(self, state): self.n = state.get("n", 0)

    make_trainer(tmp_path / "run", [Counter(1), Counter(10), at_step(5, lambda t: t.stop())]).train()
    one, ten = Counter(1), Counter(10)
    trainer = make_trainer(tmp_path / "run", [one, ten], resume="auto")
    steps = trainer.train().steps
    assert (one.n, ten.n) == (steps, 10 * steps)


def test_a_longer_or_other_batch_on_resume_still_takes_every_epoch(tmp_path):
    make_trainer(tmp_path / "run", [listener(on_epoch=lambda t, epoch: t.stop() if epoch == 2 else None)], batch_size=2).train()
    results = make_trainer(tmp_path / "run", resume="auto", batch_size=8, num_epochs=4).train()
    assert results.epochs == 4 and results.status == "finished"


# ------------------------------------------------------------------------------------------------- kills while saving
def check_folder_after_kill(folder, at_least):
    "Everything with a name is complete; latest is of one piece: each weight is the step's number."
    for path in (folder / "checkpoints").glob("*.pt"):
        ck._verify_zip(path)
    found = find_checkpoint(folder)
    state = torch.load(found, weights_only=True)
    step = state["counters"]["step"]
    assert {float(v) for t in state["model"].values() for v in (t.min(), t.max())} == {step}
    assert found.name == ck.LATEST and step >= at_least
    return step


@pytest.mark.timeout(900)
def test_case_05_killed_while_saving(tmp_path, nursery, amount, measured):
    "kill -9 at random moments of a process that does nothing but save; old or new, something is always loadable."
    folder, kills, loadable, cut, step = tmp_path / "run", amount(10, 50), 0, 0, 1
    save_checkpoint(folder / "checkpoints" / ck.LATEST, faults.filled_state(1))
    for _ in range(kills):
        child = nursery.start("save_for_ever", folder)
        while not (folder / "saving").exists() and child.running:
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.4))
        assert child.kill(), child.err
        (folder / "saving").unlink()
        cut += bool(list((folder / "checkpoints").glob(".tmp-*")))
        step = check_folder_after_kill(folder, step)
        loadable += 1
        run = RunFolder(folder)  # the next run sweeps up
        run.acquire()
        assert not list((folder / "checkpoints").glob(".tmp-*"))
        run.release()
    measured("kill -9 while saving (case 5)", f"{loadable} of {kills} loadable; {cut} kills left a half-written file; {step} saves")
    assert loadable == kills


def test_case_05_killed_at_each_thing_it_asks_of_the_file_system(tmp_path, nursery, measured):
    "Not at random: before every open, write-out, rename, link and unlink of a save with an epoch and a new best."
    folder = tmp_path / "run"
    for number in (1, 2, 3):
        assert nursery.call("save_and_die", folder, number, 1, 10**9).code == 0
    number, at = 6, 1
    while True:
        child = nursery.call("save_and_die", folder, number, 1, at)
        step = check_folder_after_kill(folder, 3)
        assert step in (3, number)
        if child.code == 0:
            break
        assert child.code == -9, child.err
        at += 1
        for path in folder.glob("checkpoints/.tmp-*"):
            path.unlink()
        if step == number:  # the new state was through: the next round saves another
            number += 3
    measured("kill -9 before each file-system call of a save (cases 5, 7, 11)", f"{at - 1} places, each left a loadable latest")
    assert at > 15


def test_case_05_best_and_epoch_are_made_again_when_latest_was_not_reached(tmp_path, nursery, finished):
    "The links of a save come before latest: whatever a kill cut off is done again by the resumed run."
    folder, order = tmp_path / "run", []
    real = ck.link_checkpoint
    ck.link_checkpoint = lambda source, target: (order.append(target.name), real(source, target))
    try:
        ck._write_all(folder / "checkpoints", faults.filled_state(3, 16), [ck.BEST, "epoch_0001.pt"], 3, queue.SimpleQueue())
    finally:
        ck.link_checkpoint = real
    assert order[-1] == ck.LATEST


@pytest.mark.timeout(1800)
def test_case_05_killed_again_and_again_the_run_ends_where_it_would_have(tmp_path, nursery, measured, amount):
    "kill -9 at random moments, --resume auto after each: the final weights are those of the undisturbed run."
    options = {"dropout": 0.1, "gradient_accumulation_steps": 2, "num_epochs": amount(12, 40), "eval_every": 3, "log_every": 2}
    start = time.monotonic()
    assert nursery.call("run", tmp_path / "whole", options).code == 0
    duration = time.monotonic() - start
    wanted, kills, runs, before_first_save = amount(3, 20), 0, 0, 0
    while kills < wanted:
        runs += 1
        folder = tmp_path / f"parts{runs}"
        while True:
            child = nursery.start("run", folder, {**options, "resume": "auto"})
            if kills < wanted:
                time.sleep(random.uniform(0.02, 1.6 * duration / wanted))
                if child.kill():
                    kills += 1
                    before_first_save += not (folder / "checkpoints" / ck.LATEST).exists()
                    continue
            assert child.wait() == 0, child.err
            break
        assert_same_run(folder, tmp_path / "whole")
    steps = state_of(tmp_path / "whole")["counters"]["step"]
    measured(f"kill -9 of a run, resume after each ({wanted} kills)",
             f"{kills} kills in {runs} run(s) of {steps} steps, {before_first_save} before the first save; final weights, optimizer and "
             "log equal to the undisturbed run")


def test_case_05_a_log_cut_in_the_middle_of_a_line(tmp_path, run_folder):
    run = RunFolder(run_folder)
    whole = ck.read_metrics(run_folder)
    with open(run.metrics, "ab") as file:
        file.write(b'{"event": "train", "step": 3')
    assert ck.read_metrics(run_folder) == whole
    run.append({"event": "sample", "step": 33})  # a line of its own
    assert ck.read_metrics(run_folder)[-1] == {"event": "sample", "step": 33}
    run.forget_after(11)
    assert max(r["step"] for r in ck.read_metrics(run_folder)) == 11
    for line in run.metrics.read_text().splitlines():
        json.loads(line)


def test_case_05_a_run_killed_before_its_first_checkpoint_starts_anew(tmp_path, nursery):
    folder = tmp_path / "run"
    child = nursery.start("run", folder, {"save_every": 0}, 0.05)
    while len(ck.read_metrics(folder)) < 3:
        assert child.running, child.err
        time.sleep(0.005)
    assert child.kill() and not list(folder.glob("checkpoints/*.pt"))
    trainer = make_trainer(folder, resume="auto")
    trainer.train()
    assert [r["step"] for r in log_of(folder, ["train"])] == list(range(1, trainer.state.step + 1))


# --------------------------------------------------------------------------------------------------------- disk full
@pytest.mark.parametrize("left", [0, 200_000], ids=["nothing-left", "too-little-left"])
def test_case_06_disk_full_during_a_save(mount, tmp_path, left):
    "A real full disk: tmpfs of 4 MB, filled up while the run is under way."
    disk = mount(megabytes=4)
    folder, filler = disk / "run", disk / "filler"

    def fill(trainer):
        trainer.writer.flush()
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        with open(filler, "wb") as file:
            file.write(b"x" * (free - left))

    trainer = make_trainer(folder, [at_step(5, fill)], save_every=4, max_checkpoints=1)
    with pytest.raises(CheckpointError, match="no space left on device.*intact"):
        trainer.train()
    assert trainer.error is not None and not trainer.running
    assert not [p for p in folder.rglob("*") if p.name.startswith(".tmp-")]
    assert RunFolder(folder).status()["status"] == "failed"
    step = ck.verify_checkpoint(find_checkpoint(folder)).step
    assert step == 4 and not [i for i in list_checkpoints(folder) if i.problem]
    filler.unlink()
    make_trainer(folder, resume="auto", save_every=4, max_checkpoints=1).train()
    make_trainer(tmp_path / "whole", save_every=4, max_checkpoints=1).train()
    assert_same_run(folder, tmp_path / "whole")


def test_case_06_the_save_function_itself_on_a_full_disk(mount):
    disk = mount(megabytes=2)
    good = save_checkpoint(disk / "a.pt", faults.filled_state(1, 16))
    before = snapshot(disk)
    with pytest.raises(CheckpointError, match="no space left"):
        save_checkpoint(good, faults.filled_state(2, 256))
    assert snapshot(disk) == before


def test_case_07_the_order_in_which_a_file_is_written(tmp_path, monkeypatch):
    "Temporary file in the same folder, written out to the disk, renamed, then the folder written out."
    events, real = [], {name: getattr(os, name) for name in ("open", "fsync", "replace")}

    def note(name):
        def call(*args, **options):
            result = real[name](*args, **options)
            what = os.readlink(f"/proc/self/fd/{args[0]}") if name == "fsync" else [str(a) for a in args[:2]]
            if str(tmp_path) in str(what):
                size = os.fstat(args[0]).st_size if name == "fsync" and not os.path.isdir(what) else None
                events.append((name, what, size))
            return result
        return call

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc")
    for name in real:
        monkeypatch.setattr(os, name, note(name))
    path = tmp_path / "new.pt"
    save_checkpoint(path, faults.filled_state(1, 16))
    names = [name for name, *_ in events]
    assert names == ["open", "fsync", "replace", "open", "fsync"], events
    temp = Path(events[0][1][0])
    assert temp.parent == path.parent and Path(events[1][1]) == temp
    assert events[1][2] == path.stat().st_size  # all of it had been handed to the system by then
    assert [Path(p) for p in events[2][1]] == [temp, path]
    assert Path(events[4][1]) == path.parent


# ------------------------------------------------------------------------------------------------------------ damage
@pytest.mark.parametrize("share", [0, 0.1, 0.5, -1])
def test_case_08_truncated(run_folder, finished, share, notices):
    latest = run_folder / "checkpoints" / ck.LATEST
    flip(latest, 0)  # gives it an inode of its own
    flip(latest, 0)
    truncate(latest, share)
    with pytest.raises(CheckpointError, match=re.escape(str(latest))):
        load_checkpoint(latest)
    trainer = make_trainer(run_folder, resume="auto")
    trainer.train()
    assert str(latest) in notices() and "looking for another one" in notices()
    assert_same_run(run_folder, finished)


def test_case_09_one_flipped_byte_in_a_tensor(run_folder, finished, notices):
    checkpoints = run_folder / "checkpoints"
    good = load_checkpoint(checkpoints / ck.LATEST)
    newest = [i.path for i in list_checkpoints(run_folder) if i.step == good["counters"]["step"]]
    assert len(newest) > 1
    for path in newest:  # latest, best and the epoch's file are one file: damage each
        flip(path, tensor_offset(path))
    silent = torch.load(checkpoints / ck.LATEST, weights_only=True)  # torch alone does not notice
    assert differences(silent, good)
    with pytest.raises(CheckpointError, match="CRC-32"):
        load_checkpoint(checkpoints / ck.LATEST)
    make_trainer(run_folder, resume="auto").train()
    assert "CRC-32" in notices() and "using" in notices()
    assert_same_run(run_folder, finished)


@pytest.mark.timeout(900)
def test_case_09_any_flipped_bit_is_found_or_harmless(tmp_path, amount, measured):
    "Anywhere in the file, not only in tensors: refused, or the content is the same bit for bit."
    path = save_checkpoint(tmp_path / "a.pt", faults.filled_state(3, 8))
    good, data, rng = load_checkpoint(path), path.read_bytes(), random.Random(9)
    offsets = [*range(40), *range(len(data) - 60, len(data)), *rng.sample(range(len(data)), amount(100, 5000))]
    refused = 0
    for offset in offsets:
        damaged = bytearray(data)
        damaged[offset] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            assert differences(load_checkpoint(path), good) == [], offset
        except CheckpointError:
            refused += 1
    measured("one flipped bit anywhere in a checkpoint (case 9)",
             f"{len(offsets)} places: {refused} refused, {len(offsets) - refused} in bytes that carry nothing (padding, headers), "
             "content identical; none accepted with other content")


def test_case_10_all_corrupt(run_folder):
    paths = sorted((run_folder / "checkpoints").glob("*.pt"))
    for path in paths:
        truncate(path, 0.5) if path.stat().st_nlink == 1 else flip(path, 100)
    before = snapshot(run_folder / "checkpoints")
    with pytest.raises(CheckpointError) as error:
        make_trainer(run_folder, resume="auto").train()
    assert all(str(path) in str(error.value) for path in paths)
    assert snapshot(run_folder / "checkpoints") == before
    assert RunFolder(run_folder).status()["status"] == "finished"  # what the last run said of itself


def test_case_11_best_and_latest_are_never_rotated_away(tmp_path):
    folder = tmp_path / "run"
    make_trainer(folder, max_checkpoints=2, num_epochs=5).train()
    names = sorted(p.name for p in (folder / "checkpoints").iterdir())
    assert [n for n in names if n.startswith("epoch_")] == ["epoch_0004.pt", "epoch_0005.pt"]
    assert len([n for n in names if n.startswith("step_")]) == 2
    assert {ck.BEST, ck.LATEST} <= set(names)


def test_case_11_rotation_after_going_back_keeps_what_is_new(tmp_path):
    "A run that resumed from an earlier step writes lower step numbers: those are the new files."
    checkpoints = tmp_path / "checkpoints"
    for number in (40, 50, 10, 20):
        ck._write_all(checkpoints, faults.filled_state(number, 8), [f"step_{number:08d}.pt"], 2, queue.SimpleQueue())
        time.sleep(0.02)
    assert sorted(p.name for p in checkpoints.glob("step*")) == ["step_00000010.pt", "step_00000020.pt"]


def test_going_back_to_an_earlier_checkpoint_keeps_what_came_after(run_folder, finished):
    chosen = run_folder / "checkpoints" / "epoch_0001.pt"
    make_trainer(run_folder, resume=chosen).train()
    assert_same_run(run_folder, finished)  # the same way again
    aside = run_folder / "checkpoints.1"
    for path in aside.glob("*.pt"):
        assert path.read_bytes() == (finished / "checkpoints" / path.name).read_bytes()
    assert (aside / "epoch_0003.pt").exists() and (aside / ck.BEST).exists()
    assert (aside / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()


def test_resuming_from_the_own_run_folder_by_name(run_folder, finished):
    results = make_trainer(run_folder, resume=run_folder).train()
    assert results.status == "finished"
    assert_same_run(run_folder, finished)


# ------------------------------------------------------------------------------------------------------------ trust
def test_case_12_pickles_with_code_are_refused(tmp_path, finished, nursery):
    from llmbuilder.generation import generate_text

    marker, folder = tmp_path / "marker", tmp_path / "evil"
    folder.mkdir()
    state = load_checkpoint(finished / "checkpoints" / ck.LATEST)
    files = faults.evil_pickles(folder, marker, state)
    assert len(files) == 6
    for path in files.values():
        for attempt in (load_checkpoint, ck.load_model, generate_text, lambda p: make_trainer(tmp_path / "out", resume=p).train()):
            with pytest.raises(LLMBuilderError):
                attempt(path)
            assert not marker.exists(), path
        child = nursery.call("cli", "checkpoint", "verify", path)
        assert child.code == 1 and "Traceback" not in child.err
        assert not marker.exists(), path
    torch.load(files["zip"], weights_only=False)  # the trap works
    assert marker.exists()


def test_case_12_what_could_not_be_read_again_is_not_written(tmp_path):
    "A callback that keeps a Path in its state: found while saving, not when the run is to go on."
    path = tmp_path / "checkpoints" / "a.pt"
    with pytest.raises(CheckpointError, match=r"state\.callbacks\.mine is a (Posix|Windows)Path"):
        save_checkpoint(path, {**faults.filled_state(1, 8), "callbacks": {"mine": tmp_path}})
    assert not path.exists()
    import numpy as np

    with pytest.raises(CheckpointError, match="float64"):
        save_checkpoint(path, {**faults.filled_state(1, 8), "x": [np.float64(1)]})


def test_case_12_a_real_checkpoint_holds_only_tensors_and_plain_values(finished):
    ck.require_plain(torch.load(finished / "checkpoints" / ck.LATEST, weights_only=True))


@pytest.mark.parametrize("name", faults.sabotage())
def test_case_13_a_state_that_makes_no_sense(finished, tmp_path, name):
    state = torch.load(finished / "checkpoints" / ck.LATEST, weights_only=True)
    torch.save(change(state, *faults.sabotage()[name]), tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match="bad.pt"):
        load_checkpoint(tmp_path / "bad.pt")
    info, = list_checkpoints(tmp_path)
    assert info.problem and "BAD" in str(info)


RESUME_ONLY = {
    "no optimizer": ("optimizer", ...), "optimizer is None": ("optimizer", None), "optimizer without state": ("optimizer/state", ...),
    "moments of another shape": ("optimizer/state/norm.weight/exp_avg", torch.zeros(3)), "no random states": ("rng", ...),
    "random states are empty": ("rng", []), "random state cut": ("rng", [{"torch": torch.zeros(3, dtype=torch.uint8)}]),
    "no position": ("data", ...), "no scheduler": ("scheduler", ...),
    "position behind the end": ("counters/samples", 10**9), "negative position": ("counters/samples", -1),
    "micro-batch is text": ("counters/micro_batch", "4"), "scheduler is text": ("scheduler", {"updates": "x"}),
}


@pytest.mark.parametrize("name", RESUME_ONLY)
def test_case_13_a_state_that_cannot_be_resumed_from(finished, tmp_path, name):
    state = torch.load(finished / "checkpoints" / "epoch_0001.pt", weights_only=True)
    path = tmp_path / "bad.pt"
    torch.save(change(state, *RESUME_ONLY[name]), path)
    with pytest.raises(CheckpointError, match="bad.pt"):
        make_trainer(tmp_path / "out", resume=path).train()
    assert not list((tmp_path / "out").rglob("*.pt"))


@pytest.mark.parametrize("name", ["layers", "wide", "vocabulary"])
def test_case_13_a_huge_config_takes_no_memory(finished, tmp_path, nursery, name):
    state = torch.load(finished / "checkpoints" / ck.LATEST, weights_only=True)
    torch.save(change(state, *faults.sabotage()[name]), tmp_path / "bad.pt")
    child = nursery.call("verify_within", tmp_path / "bad.pt", 60)
    assert child.code == 1, child.out + child.err


def test_case_13_stretched_tensors_take_no_memory(tmp_path, nursery):
    "A file of a few kB whose tensors claim 40 GB by repeating one number: refused before anything is allocated."
    from llmbuilder.config import Config
    from llmbuilder.model import Transformer

    config = Config.from_dict({"vocab_size": 200_000, "model": {"embedding_dim": 16384, "num_layers": 2, "num_heads": 2}})
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in Transformer(config.model).state_dict().items()}
    state = {"format": ck.FORMAT, "format_version": 1, "library_version": "3.0.0", "config": config.to_dict(),
             "counters": {"step": 1}, "model": {k: torch.zeros(1).expand(shape) for k, shape in shapes.items()}}
    torch.save(state, tmp_path / "bad.pt")
    assert (tmp_path / "bad.pt").stat().st_size < 100_000
    child = nursery.call("verify_within", tmp_path / "bad.pt", 60)
    assert child.code == 1 and "no tensor of numbers" in child.out, child.out + child.err


# ---------------------------------------------------------------------------------------------------------- versions
def test_case_14_every_released_format_still_loads():
    "tests/fixtures/checkpoint_v1.pt was written by 3.0.0; tests/fixtures/make.py says how."
    from llmbuilder.generation import generate_text

    path = FIXTURES / "checkpoint_v1.pt"
    assert path.stat().st_size < 100_000
    state = load_checkpoint(path)
    expected = json.loads((FIXTURES / "checkpoint_v1.json").read_text(encoding="utf-8"))
    assert state["format_version"] == ck.FORMAT_VERSION and state["counters"]["step"] == expected["step"]
    model, tokenizer, _ = ck.load_model(path)
    assert tokenizer.fingerprint == expected["tokenizer"]
    ids = torch.tensor([tokenizer.encode(expected["text"])])
    assert ids[0].tolist() == expected["ids"]
    assert model(ids[:, :-1], ids[:, 1:]).item() == pytest.approx(expected["loss"], abs=1e-3)
    assert generate_text(path, prompt="The", max_new_tokens=5, device="cpu").startswith("The")


def test_case_14_a_run_goes_on_from_the_first_format(tmp_path):
    from llmbuilder.data import TextDataset
    from llmbuilder.model import build_model
    from llmbuilder.config import Config
    from llmbuilder.training import Trainer

    path = FIXTURES / "checkpoint_v1.pt"
    _, tokenizer, state = ck.load_model(path)
    config = Config.from_dict(state["config"])
    config.training.num_epochs = state["counters"]["epoch"] + 1
    text = json.loads((FIXTURES / "checkpoint_v1.json").read_text(encoding="utf-8"))["text"] * 20
    data = TextDataset.from_tokens(tokenizer.encode(text), config.model.max_seq_length, tokenizer)
    trainer = Trainer(build_model(config.model), data, None, config, tmp_path / "run", resume=path, progress=False)
    results = trainer.train()
    assert results.steps > state["counters"]["step"] and results.status == "finished"


def test_case_14_a_newer_format_asks_for_an_upgrade(finished, tmp_path):
    state = torch.load(finished / "checkpoints" / ck.LATEST, weights_only=True)
    torch.save({**state, "format_version": ck.FORMAT_VERSION + 1, "library_version": "9.1.0", "model": "something new"}, tmp_path / "n.pt")
    with pytest.raises(CheckpointError, match="upgrade llmbuilder to 9.1.0 or newer"):
        load_checkpoint(tmp_path / "n.pt")


def test_case_14_older_formats_are_brought_up_to_date_step_by_step(finished, tmp_path, monkeypatch):
    "A made-up history: version 2 renamed counters, version 3 put the step's name in capitals; our file is of version 1."
    path = finished / "checkpoints" / ck.LATEST
    state = torch.load(path, weights_only=True)
    torch.save({**{k: v for k, v in state.items() if k != "counters"}, "count": state["counters"]}, tmp_path / "old.pt")
    monkeypatch.setattr(ck, "FORMAT_VERSION", 3)
    calls = []

    def two(state):
        calls.append(1)
        return {**{k: v for k, v in state.items() if k != "count"}, "counters": state["count"]}

    monkeypatch.setattr(ck, "_MIGRATIONS", {1: two, 2: lambda state: calls.append(2) or {**state, "extra": True}})
    new = load_checkpoint(tmp_path / "old.pt")
    assert calls == [1, 2] and new["format_version"] == 3 and new["extra"] and new["counters"] == state["counters"]


# --------------------------------------------------------------------------------------------------------- tokenizer
@pytest.fixture(scope="module")
def tokenizers():
    "A large and a small one."
    from llmbuilder.tokenizer import train_tokenizer

    text = ["the harbour was quiet in the early morning, and the boats lay close together on the grey water. " * 4]
    return [train_tokenizer(text, vocab_size=size, model_type="bpe") for size in (300, 275)]


def test_case_15_a_tokenizer_with_more_ids_than_the_model(tmp_path, tokenizers):
    big, _ = tokenizers
    with pytest.raises(CheckpointError, match=f"{big.vocab_size} ids and the model 64"):
        make_trainer(tmp_path / "run", tokenizer=big)
    state = {**faults.filled_state(1, 8), "tokenizer": {"model": torch.tensor(list(big.model_bytes), dtype=torch.uint8),
                                                        "fingerprint": big.fingerprint}}
    save_checkpoint(tmp_path / "fewer.pt", state)
    ck.load_model(tmp_path / "fewer.pt")  # 512 ids in the model, fewer in the tokenizer: fine


def test_case_15_another_tokenizer_than_the_model_was_trained_with(tmp_path, tokenizers):
    from llmbuilder.generation import generate_text

    big, small = tokenizers
    state = {**faults.filled_state(1, 8), "tokenizer": {"model": torch.tensor(list(big.model_bytes), dtype=torch.uint8),
                                                        "fingerprint": big.fingerprint}}
    path = save_checkpoint(tmp_path / "a.pt", state)
    small.save(tmp_path / "other")
    with pytest.raises(LLMBuilderError) as error:
        generate_text(path, tmp_path / "other", "x", device="cpu")
    assert big.fingerprint[:12] in str(error.value) and small.fingerprint[:12] in str(error.value)
    big.save(tmp_path / "same")
    assert isinstance(generate_text(path, tmp_path / "same", "the", max_new_tokens=2, device="cpu"), str)


def test_case_15_resuming_with_another_model_or_tokenizer(tmp_path, finished):
    from llmbuilder.config import ModelConfig, TrainingConfig
    from llmbuilder.model import build_model
    from llmbuilder.training import Trainer

    other = build_model(ModelConfig(**{**faults.MODEL, "num_layers": 1}))
    path = finished / "checkpoints" / ck.LATEST
    with pytest.raises(CheckpointError, match="num_layers=2 and this one 1"):
        Trainer(other, faults.windows(), None, TrainingConfig(device="cpu"), tmp_path / "out", resume=path, progress=False).train()


def test_errors_of_this_folder_are_the_users(tmp_path):
    "Every error here is one sentence of an LLMBuilderError."
    for cls in (CheckpointError, TrainingError, ConfigError):
        assert issubclass(cls, LLMBuilderError)
    with pytest.raises(CheckpointError, match="is a folder"):
        load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="there is no checkpoint at"):
        load_checkpoint(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="there is no folder"):
        find_checkpoint(tmp_path / "none")
    with pytest.raises(CheckpointError, match="train a model first"):
        find_checkpoint(tmp_path)


def test_permissions_do_not_stop_reading(tmp_path):
    path = save_checkpoint(tmp_path / "a.pt", faults.filled_state(1, 8))
    path.chmod(stat.S_IRUSR)
    assert ck.verify_checkpoint(path).step == 1
