"""Cases 16 to 25 of RELIABILITY.md: what happens to a run while it is under way."""
import json
import os
import shutil
import signal
import stat
import threading
import time
from pathlib import Path

import faults
import pytest
import torch
from faults import MODEL, at_step, differences, listener, log_of, make_trainer, snapshot, state_of

from llmbuilder import checkpoint as ck
from llmbuilder.checkpoint import CheckpointError, RunFolder, find_checkpoint, list_checkpoints, read_metrics, verify_checkpoint
from llmbuilder.training import Stepper, TrainingError


# ---------------------------------------------------------------------------------------------------- not a number
def poison(when, what, how):
    "A wrapper of the model whose loss (how='loss') or a gradient (how='gradient') is `what` at the forward passes in `when`."
    def wrap(model):
        forward, calls = model.forward, [0]

        def spoilt(ids, targets=None, *args, **options):
            loss = forward(ids, targets, *args, **options)
            if targets is None or not model.training:
                return loss
            calls[0] += 1
            if calls[0] not in when:
                return loss
            if how == "loss":
                return loss * what
            zero = model.norm.weight.sum() - model.norm.weight.sum().detach()
            zero.register_hook(lambda gradient: gradient * what)
            return loss + zero
        model.forward = spoilt
        return model
    return wrap


@pytest.mark.parametrize("how", ["loss", "gradient"])
@pytest.mark.parametrize("what", [float("nan"), float("inf")])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_case_16_a_step_that_is_not_finite_is_skipped(tmp_path, what, how, optimizer):
    weights = {}
    keep = listener(on_step=lambda t, r: weights.__setitem__(r["step"], {k: v.clone() for k, v in t.model.state_dict().items()}))
    trainer = make_trainer(tmp_path / "run", [keep], wrap=poison({5}, what, how), optimizer=optimizer)
    results = trainer.train()
    assert results.status == "finished" and trainer.state.skipped == 1
    assert differences(weights[5], weights[4]) == [] and differences(weights[6], weights[5]) != []
    lines = [json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
             for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    skip, = [r for r in lines if r["event"] == "skip"]
    assert skip["at"] == 5 and skip["nonfinite"] is True
    assert skip["loss" if how == "loss" else "grad_norm"] is None
    rate = {r["step"]: r["lr"] for r in lines if r["event"] == "train"}
    assert rate[6] == rate[5]  # the schedule waits
    for path in (tmp_path / "run/checkpoints").glob("*.pt"):
        assert all(torch.isfinite(t).all() for t in torch.load(path, weights_only=True)["model"].values())


def test_case_16_three_in_a_row_stop_the_run_and_name_the_step(tmp_path):
    trainer = make_trainer(tmp_path / "run", wrap=poison({5, 6, 9, 10, 11, 12}, float("nan"), "loss"))
    with pytest.raises(TrainingError, match="steps 9 to 11"):
        trainer.train()
    assert all(torch.isfinite(t).all() for t in trainer.model.state_dict().values())
    assert trainer.state.skipped == 5
    status = RunFolder(tmp_path / "run").status()
    assert status["status"] == "failed" and "steps 9 to 11" in status["error"]
    step = verify_checkpoint(find_checkpoint(tmp_path / "run")).step
    assert 8 <= step <= 11
    make_trainer(tmp_path / "run", resume="auto").train()  # without the poison


@pytest.fixture
def read_late(monkeypatch):
    "Losses are read up to 16 steps late, as on a GPU; the guard on the update itself never waits."
    from llmbuilder import training

    step, read = training.take_step, training.read_losses
    inside = []

    def late_step(trainer, indices):
        inside.append(1)
        step(trainer, indices)
        inside.pop()

    monkeypatch.setattr(training, "take_step", late_step)
    monkeypatch.setattr(training, "read_losses", lambda t: read(t) if not inside or len(t.pending) >= 16 else None)


def test_case_16_read_late_the_exact_step_is_still_named(tmp_path, read_late):
    options = {"log_every": 0, "save_every": 0, "batch_size": 1, "num_epochs": 2}  # 27 steps an epoch
    trainer = make_trainer(tmp_path / "one", wrap=poison({5}, float("nan"), "loss"), **options)
    results = trainer.train()
    skip, = [r for r in read_metrics(tmp_path / "one") if r["event"] == "skip"]
    assert skip["at"] == 5 and skip["step"] == 16  # the host heard of it then
    assert trainer.stepper.scheduler.last_epoch == results.steps - 1
    trainer = make_trainer(tmp_path / "three", wrap=poison({5, 6, 7}, float("nan"), "loss"), **options)
    with pytest.raises(TrainingError, match="steps 5 to 7"):
        trainer.train()
    assert all(torch.isfinite(t).all() for t in trainer.model.state_dict().values())


def test_case_16_nothing_that_is_not_finite_is_ever_saved(tmp_path):
    "Somebody's callback ruins the weights: the run ends, the last good checkpoint stays."
    def ruin(trainer):
        trainer.writer.flush()
        with torch.no_grad():
            trainer.model.norm.weight[0] = float("nan")

    with pytest.raises(CheckpointError, match=r"norm\.weight is not finite at step \d+: not saved"):
        make_trainer(tmp_path / "run", [at_step(4, ruin)]).train()
    assert verify_checkpoint(find_checkpoint(tmp_path / "run")).step == 3


def test_case_16_an_infinite_validation_loss_is_null_in_the_log(tmp_path):
    def wrap(model):
        forward = model.forward
        model.forward = lambda *a, **o: forward(*a, **o) * (1.0 if model.training else float("inf"))
        return model

    results = make_trainer(tmp_path / "run", wrap=wrap, num_epochs=1).train()
    record, = [r for r in read_metrics(tmp_path / "run") if r["event"] == "eval"]
    assert record["val_loss"] is None and record["best"] is False and results.status == "finished"
    ck.require_plain(json.loads(json.dumps(state_of(tmp_path / "run")["counters"], allow_nan=False)))


# ------------------------------------------------------------------------------------------------------------- fp16
def test_case_17_fp16_overflow_skips_the_step_and_the_schedule_waits(tmp_path, fp16):
    "A real GradScaler: its first scale of 65536 overflows, it halves until gradients fit, then the run goes on."
    trainer = make_trainer(tmp_path / "run", mixed_precision="fp16", wrap=lambda m: scale_loss(m, 300.0))
    scales = []
    trainer.callbacks.append(listener(on_step=lambda t, r: scales.append((r["skipped"], t.stepper.scaler.get_scale()))))
    results = trainer.train()
    skipped = [s for s in scales if s[0]]
    assert skipped and results.status == "finished" and scales[-1][1] < 65536
    assert trainer.stepper.scheduler.last_epoch == results.steps - len(skipped)
    assert len([r for r in read_metrics(tmp_path / "run") if r["event"] == "skip"]) == len(skipped)


def scale_loss(model, factor):
    forward = model.forward
    model.forward = lambda *a, **o: forward(*a, **o) * (factor if model.training else 1.0)
    return model


def test_case_17_a_floor_on_the_scale_ends_the_run_with_advice(tmp_path, fp16):
    with pytest.raises(TrainingError, match='loss scale 0.5 .*mixed_precision="bf16" or "no"'):
        make_trainer(tmp_path / "run", mixed_precision="fp16", num_epochs=30, wrap=poison(range(1, 999), float("inf"), "gradient")).train()
    assert all(torch.isfinite(t).all() for t in state_of(tmp_path / "run")["model"].values())


def test_case_17_with_a_scaler_made_by_hand(monkeypatch):
    "The same without fp16: gradients that overflow once are not stepped with, and the scale halves."
    from llmbuilder.config import ModelConfig, TrainingConfig
    from llmbuilder.model import build_model

    torch.manual_seed(0)
    model = scale_loss(build_model(ModelConfig(**MODEL)), 1e3)
    stepper = Stepper(model, TrainingConfig(device="cpu", warmup_steps=0), 100, torch.device("cpu"))
    stepper.scaler = torch.amp.GradScaler("cpu", enabled=True, init_scale=2.0**127)
    x, y = faults.windows().get_batch(torch.arange(4))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    loss, _ = stepper.gradients([(x, y)])
    stepper.update(loss)
    assert differences(before, model.state_dict()) == [] and stepper.scaler.get_scale() == 2.0**126
    stepper.scaler.update(1024.0)
    loss, _ = stepper.gradients([(x, y)])
    stepper.update(loss)
    assert differences(before, model.state_dict()) != []


# ----------------------------------------------------------------------------------------------------- out of memory
def limited(windows, error=torch.OutOfMemoryError, message="CUDA out of memory. Tried to allocate 20.00 MiB"):
    "A wrapper of the model that runs out of memory above so many windows in one forward pass."
    def wrap(model):
        forward, model.seen = model.forward, []

        def small(ids, *args, **options):
            if model.training:
                model.seen.append(len(ids))
                if len(ids) > windows:
                    raise error(message)
            return forward(ids, *args, **options)
        model.forward = small
        return model
    return wrap


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError,
                                   lambda m: RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory")])
def test_case_18_the_micro_batch_halves_and_the_batch_stays(tmp_path, error):
    trainer = make_trainer(tmp_path / "run", wrap=limited(3, error), batch_size=8)
    trainer.train()
    assert trainer.state.micro_batch == 2 and trainer.model.seen[:2] == [8, 4] and max(trainer.model.seen[2:]) == 2
    whole = make_trainer(tmp_path / "whole", batch_size=8)
    whole.train()
    ours, theirs = log_of(tmp_path / "run", ["train"]), log_of(tmp_path / "whole", ["train"])
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4) and a["lr"] == b["lr"] and a["tokens"] == b["tokens"]
    assert state_of(tmp_path / "run")["counters"]["micro_batch"] == 2  # a resumed run does not try again


def test_case_18_the_gradients_are_those_of_the_whole_batch():
    from llmbuilder.config import ModelConfig, TrainingConfig
    from llmbuilder.model import build_model

    torch.manual_seed(0)
    model = build_model(ModelConfig(**MODEL))
    stepper = Stepper(model, TrainingConfig(device="cpu"), 10, torch.device("cpu"))
    data = faults.windows()
    indices = torch.arange(len(data) - 8, len(data))  # the padded last window among them
    grads = []
    for size in (8, 4, 2, 1):
        loss, targets = stepper.gradients([data.get_batch(i) for i in indices.split(size)])
        grads.append([loss, *(p.grad.clone() for p in stepper.parameters)])
    for other in grads[1:]:
        for a, b in zip(grads[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_case_18_nothing_fits(tmp_path):
    with pytest.raises(TrainingError, match="out of memory with one window per forward pass: shorten block_size"):
        make_trainer(tmp_path / "run", wrap=limited(0), batch_size=8).train()
    assert RunFolder(tmp_path / "run").status()["status"] == "failed"


def test_case_18_out_of_memory_elsewhere_is_one_sentence_too(tmp_path):
    def burst(trainer):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(TrainingError, match="out of memory: use a smaller"):
        make_trainer(tmp_path / "run", [at_step(3, burst)]).train()


# ------------------------------------------------------------------------------------------------------------ signals
SLOW = {"num_epochs": 30, "save_every": 0}


def wait_for(condition, child=None, timeout=60):
    end = time.monotonic() + timeout
    while not condition():
        assert child is None or child.running, child.out + child.err
        assert time.monotonic() < end, "timed out"
        time.sleep(0.005)


@pytest.mark.parametrize("number, code, status", [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")])
def test_case_19_and_20_one_signal_finishes_the_step_and_saves(tmp_path, nursery, number, code, status):
    folder, options = tmp_path / "run", {"num_epochs": 8, "save_every": 0, "dropout": 0.1}
    child = nursery.start("run", folder, options, 0.02)
    wait_for(lambda: len(read_metrics(folder)) > 3, child)
    child.send(number)
    assert child.wait() == code, child.err
    assert "Traceback" not in child.err
    assert RunFolder(folder).status()["status"] == status
    step = verify_checkpoint(folder / "checkpoints" / ck.LATEST).step
    assert step == max(r["step"] for r in log_of(folder, ["train"])) > 0  # nothing was lost
    assert nursery.call("run", folder, {**options, "resume": "auto"}).code == 0
    assert nursery.call("run", tmp_path / "whole", options).code == 0
    assert differences(state_of(folder), state_of(tmp_path / "whole")) == []


def test_case_19_a_second_ctrl_c_stops_at_once(tmp_path, nursery):
    "The step takes 30 s; the checkpoint before stays valid."
    folder = tmp_path / "run"
    assert nursery.call("run", folder, {"num_epochs": 1}).code == 0
    step, best = verify_checkpoint(find_checkpoint(folder)).step, (folder / "checkpoints" / ck.BEST).read_bytes()
    child = nursery.start("run", folder, {**SLOW, "resume": "auto"}, 30.0)
    wait_for(lambda: len(read_metrics(folder)) and read_metrics(folder)[-1]["event"] == "start", child)
    time.sleep(0.3)  # into the step
    child.send(signal.SIGINT)
    wait_for(lambda: "press Ctrl-C again" in child.err, child)
    start = time.monotonic()
    child.send(signal.SIGINT)
    assert child.wait() == 130, child.err
    assert time.monotonic() - start < 5
    assert verify_checkpoint(find_checkpoint(folder)).step == step
    assert (folder / "checkpoints" / ck.BEST).read_bytes() == best
    assert RunFolder(folder).status()["status"] == "interrupted"


def test_case_19_in_a_notebook_the_partial_result_comes_back(tmp_path):
    "The main thread gets SIGINT as from the stop button; the handlers are back afterwards."
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    trainer = make_trainer(tmp_path / "run", [at_step(4, lambda t: os.kill(os.getpid(), signal.SIGINT))])
    results = trainer.train()
    assert results.status == "interrupted" and results.steps == 4 and results.final_train_loss > 0
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    results = trainer.train()  # a later cell goes on
    assert results.status == "finished" and results.epochs == 3


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_case_19_and_20_through_the_command(tmp_path, nursery, text, number, code):
    (tmp_path / "text.txt").write_text(text)
    words = ["train", "model", "--data", "text.txt", "--output", "out", "--vocab-size", "300", "--block-size", "16", "--preset", "tiny",
             "--epochs", "2000", "--training.log-every", "1"]
    child = nursery.start("cli", *words, cwd=tmp_path)
    wait_for(lambda: len(read_metrics(tmp_path / "out")) > 3, child)
    child.send(number)
    assert child.wait() == code, child.out + child.err
    assert "Traceback" not in child.err and "train resume" in child.out
    info = verify_checkpoint(find_checkpoint(tmp_path / "out"))
    child = nursery.call("cli", "train", "resume", "out", "--max-steps", str(info.step + 2), cwd=tmp_path)
    assert child.code == 0, child.err
    assert verify_checkpoint(find_checkpoint(tmp_path / "out")).step == info.step + 2


def test_case_20_sigterm_while_paused(tmp_path, nursery):
    folder = tmp_path / "run"
    child = nursery.start("run_paused", folder, {"num_epochs": 8})
    wait_for(lambda: any(r["event"] == "pause" for r in read_metrics(folder)), child)
    child.send(signal.SIGTERM)
    assert child.wait() == 143, child.err
    assert verify_checkpoint(find_checkpoint(folder)).step == 4


def test_case_20_a_closed_terminal_is_like_sigterm(tmp_path, nursery):
    child = nursery.call("run_in_a_terminal_that_closes", tmp_path / "run", {"num_epochs": 8, "save_every": 0})
    assert child.code == 143
    assert verify_checkpoint(find_checkpoint(tmp_path / "run")).step == 4


def test_case_20_under_nohup_a_closed_terminal_changes_nothing(tmp_path, nursery):
    child = nursery.call("run_in_a_terminal_that_closes", tmp_path / "run", {"num_epochs": 2, "save_every": 0}, True)
    assert child.code == 0
    assert RunFolder(tmp_path / "run").status()["status"] == "finished"


def test_requests_are_answered_while_paused(tmp_path):
    "A dashboard that samples from a paused run gets its copy of the model."
    trainer = make_trainer(tmp_path / "run", [at_step(3, lambda t: t.pause())])
    trainer.start()
    wait_for(lambda: any(r["event"] == "pause" for r in trainer.history))
    model = trainer.snapshot()
    assert differences(model.state_dict(), state_of(tmp_path / "run")["model"]) == []
    trainer.resume()
    assert trainer.wait(60).status == "finished"


# ------------------------------------------------------------------------------------------------------------ threads
def test_case_21_a_background_run_leaves_signal_handlers_alone(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    seen = []
    trainer = make_trainer(tmp_path / "run", [at_step(2, lambda t: seen.append((signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))))])
    assert trainer.start().wait(60).status == "finished"
    assert seen == [before]


def test_case_21_an_exception_in_the_thread_comes_back_from_wait(tmp_path):
    heard = []

    def fail(trainer):
        raise ZeroDivisionError("in a callback")

    trainer = make_trainer(tmp_path / "run", [at_step(2, fail), listener(on_error=lambda t, error: heard.append(error))])
    trainer.start()
    with pytest.raises(ZeroDivisionError, match="in a callback"):
        trainer.wait(60)
    assert isinstance(trainer.error, ZeroDivisionError) and heard == [trainer.error] and not trainer.running
    assert RunFolder(tmp_path / "run").status()["status"] == "failed"
    assert "ZeroDivisionError" in read_metrics(tmp_path / "run")[-1]["reason"]


def test_case_21_an_error_of_the_saving_thread_ends_the_run_at_the_next_step(tmp_path, monkeypatch):
    "The disk fails at step 3, the next save would be the epoch's: the run must not go on as if all were well."
    real = ck.save_checkpoint

    def broken(path, state):
        if state["counters"]["step"] == 3:
            raise CheckpointError("could not write x (input/output error): try another disk")
        return real(path, state)

    monkeypatch.setattr(ck, "save_checkpoint", broken)
    trainer = make_trainer(tmp_path / "run", [listener(on_step=lambda t, r: time.sleep(0.05))], save_every=3)
    with pytest.raises(CheckpointError, match="input/output error"):
        trainer.train()
    assert trainer.state.step <= 5


# --------------------------------------------------------------------------------------------------- one folder, two runs
def test_case_22_the_second_run_names_the_first(tmp_path, nursery, text):
    folder = tmp_path / "run"
    child = nursery.start("run", folder, SLOW, 0.2)
    wait_for(lambda: len(read_metrics(folder)) > 1, child)
    with pytest.raises(CheckpointError, match=f"process {child.pid} on"):
        make_trainer(folder, resume="auto").train()
    (tmp_path / "text.txt").write_text(text)
    second = nursery.call("cli", "train", "model", "--data", "text.txt", "--output", "run", "--overwrite", cwd=tmp_path)
    assert second.code == 1 and f"process {child.pid}" in second.err and "Traceback" not in second.err
    before = read_metrics(folder)
    wait_for(lambda: len(read_metrics(folder)) > len(before), child)  # the first did not notice
    assert read_metrics(folder)[:len(before)] == before


def test_case_22_a_lock_of_a_dead_process_is_recovered(tmp_path, nursery):
    child = nursery.start("hold_lock", tmp_path / "run")
    wait_for(lambda: (tmp_path / "run/held").exists(), child)
    with pytest.raises(CheckpointError, match=f"process {child.pid}"):
        RunFolder(tmp_path / "run").acquire()
    assert child.kill()
    assert (tmp_path / "run/.owner").exists()  # what a dead process leaves
    run = RunFolder(tmp_path / "run")
    run.acquire()
    run.release()
    assert make_trainer(tmp_path / "run", num_epochs=1).train().status == "finished"


def test_case_22_two_trainers_of_one_process(tmp_path):
    "Also between threads: the lock belongs to a run, not to a process."
    first = make_trainer(tmp_path / "run", [listener(on_step=lambda t, r: time.sleep(0.05))], num_epochs=20).start()
    wait_for(lambda: len(first.history) > 1)
    with pytest.raises(CheckpointError, match=f"process {os.getpid()}"):
        make_trainer(tmp_path / "run", overwrite=True).train()
    errors = []

    def try_it():
        try:
            RunFolder(tmp_path / "run").acquire()
        except CheckpointError as error:
            errors.append(error)

    thread = threading.Thread(target=try_it)
    thread.start()
    thread.join()
    assert len(errors) == 1
    first.stop()
    assert first.wait(60).status == "stopped"


# --------------------------------------------------------------------------------------------------------------- places
def test_case_23_a_read_only_output_folder(mount, tmp_path):
    disk = mount(read_only=True)
    for folder in (disk, disk / "new"):
        steps = []
        with pytest.raises(CheckpointError, match="cannot write to the output folder .*read-only"):
            make_trainer(folder, [listener(on_step=lambda t, r: steps.append(1))]).train()
        assert not steps


def test_case_23_a_file_in_place_of_the_folder(tmp_path):
    for name in ("run", "other/checkpoints"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
        folder = path if name == "run" else path.parent
        with pytest.raises(CheckpointError, match="cannot write to the output folder"):
            make_trainer(folder).train()
        assert path.read_text() == "mine"


def test_case_23_too_little_disk(mount, monkeypatch, tmp_path):
    disk = mount(megabytes=1)
    with pytest.raises(TrainingError, match="1 MB free and up to .* checkpoints need .*lower max_checkpoints"):
        make_trainer(disk / "run").train()
    assert not list(disk.iterdir())  # nothing was begun
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(TrainingError, match="checkpoints need"):
        make_trainer(tmp_path / "run").train()


def test_case_23_checkpoints_that_are_there_count_as_room(tmp_path, monkeypatch):
    "A resumed run replaces its own files: it does not need room for all of them again."
    make_trainer(tmp_path / "run", [at_step(16, lambda t: t.stop())]).train()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2_200_000))
    make_trainer(tmp_path / "run", resume="auto").train()
    with pytest.raises(TrainingError, match="checkpoints need"):
        make_trainer(tmp_path / "fresh").train()


def test_case_24_the_folder_of_a_finished_run(tmp_path):
    make_trainer(tmp_path / "run").train()
    before = snapshot(tmp_path)
    with pytest.raises(TrainingError, match=r"--resume.*--overwrite"):
        make_trainer(tmp_path / "run").train()
    assert snapshot(tmp_path) == before
    make_trainer(tmp_path / "run", overwrite=True, num_epochs=1).train()
    kept = snapshot(tmp_path / "run" / "checkpoints.1")
    for name, content in before.items():
        if name.endswith(".pt"):
            assert kept[Path(name).name] == content
    make_trainer(tmp_path / "run", overwrite=True, num_epochs=1).train()
    assert snapshot(tmp_path / "run" / "checkpoints.1") == kept and (tmp_path / "run/checkpoints.2").is_dir()


def test_case_24_through_the_command(tmp_path, nursery, text):
    (tmp_path / "text.txt").write_text(text)
    words = ["train", "model", "--data", "text.txt", "--output", "out", "--vocab-size", "300", "--block-size", "16", "--preset", "tiny",
             "--epochs", "1"]
    assert nursery.call("cli", *words, cwd=tmp_path).code == 0
    before = snapshot(tmp_path)
    child = nursery.call("cli", *words, cwd=tmp_path)
    assert child.code == 1 and "--resume" in child.err and "--overwrite" in child.err
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("umask", [0o027, 0o002, 0o077])
def test_case_25_new_files_follow_the_umask(tmp_path, nursery, text, umask):
    (tmp_path / "text.txt").write_text(text)
    words = ["train", "model", "--data", "text.txt", "--output", "out", "--vocab-size", "300", "--block-size", "16", "--preset", "tiny",
             "--epochs", "1"]
    child = nursery.call("cli", *words, cwd=tmp_path, umask=umask)
    assert child.code == 0, child.err
    files = [p for p in (tmp_path / "out").rglob("*")]
    assert len(files) > 8
    wrong = {str(p.relative_to(tmp_path)): oct(p.stat().st_mode) for p in files
             if stat.S_IMODE(p.stat().st_mode) != (0o777 if p.is_dir() else 0o666) & ~umask}
    assert not wrong


def test_list_survives_a_run_that_rotates(tmp_path, nursery):
    "Somebody lists the checkpoints of a run that is under way."
    folder = tmp_path / "run"
    ck.save_checkpoint(folder / "checkpoints" / ck.LATEST, faults.filled_state(1, 16))
    child = nursery.start("save_for_ever", folder, 1)
    for _ in range(6):
        assert not [i.problem for i in list_checkpoints(folder) if i.problem and "no checkpoint at" not in i.problem]
    assert child.kill()
