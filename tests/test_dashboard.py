"""The views without a browser: buttons clicked from code, what the widgets say, what the run's files hold."""
import gc
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import ipywidgets
import pytest
import torch

from llmbuilder import dashboard as db
from llmbuilder.checkpoint import read_metrics
from llmbuilder.config import ModelConfig, TrainingConfig
from llmbuilder.data import TextDataset
from llmbuilder.generation import TextGenerator
from llmbuilder.model import build_model
from llmbuilder.runs import compare_runs, list_runs, load_run, plot_run, records_csv, run_curves, series
from llmbuilder.tokenizer import train_tokenizer
from llmbuilder.training import Callback, Trainer

ROOT = Path(__file__).resolve().parent.parent
TRAP = "<script>alert('x')</script><img src=x onerror=alert(1)>"


@pytest.fixture(autouse=True)
def widgets_on(monkeypatch):
    monkeypatch.setenv("LLMBUILDER_UI", "widgets")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    "Tokenizer, training part, validation part."
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text((ROOT / "nbs" / "tinyshakespeare.txt").read_text(encoding="utf-8")[:20_000], encoding="utf-8")
    tokenizer = train_tokenizer(path, vocab_size=350)
    return tokenizer, *TextDataset(path, 16, tokenizer).split(0.1)


def tiny():
    return build_model(ModelConfig(vocab_size=350, max_seq_length=16, embedding_dim=16, num_layers=2, num_heads=2))


@pytest.fixture
def trainer(parts, tmp_path):
    def make(steps=60, name="run", **options):
        settings = TrainingConfig(max_steps=steps, num_epochs=10_000, batch_size=4, log_every=5, eval_every=20, device="cpu")
        return Trainer(tiny(), parts[1], parts[2], settings, tmp_path / name, **options)

    return make


def until(found, timeout=60):
    end = time.time() + timeout
    while not found():
        assert time.time() < end, "waited too long"
        time.sleep(0.01)


def slow_down(trainer, seconds=0.02):
    "A run that lasts long enough to press its buttons."

    class Slow(Callback):
        def on_step(self, trainer, record):
            time.sleep(seconds)

    trainer.callbacks.append(Slow())
    return trainer


# ---- the training panel


def test_start_to_end(trainer):
    t = trainer()
    panel = db.TrainingDashboard(t, prompt="First")
    assert "ready to start" in panel.ui.head.value and panel.buttons.stop.disabled
    panel.buttons.start.click()
    assert panel.buttons.start.disabled and panel.buttons.start.description == "Starting…"
    panel.buttons.start.click()  # does nothing
    results = t.wait()
    panel.settle()
    assert results.status == "finished"
    assert "finished after step 60" in panel.ui.head.value
    assert "60 / 60" in panel.ui.tiles.value and f"{results.best_val_loss:.3f}" in panel.ui.tiles.value
    assert bytes(panel.ui.chart.value).startswith(b"\x89PNG")
    assert panel.ui.samples.value.count("lb-box") == sum(r["event"] == "sample" for r in read_metrics(t.output_dir))
    assert panel.charts.error is None and panel.numbers.error is None


def test_pause_resume_stop(trainer):
    t = slow_down(trainer(steps=5000))
    panel = db.TrainingDashboard(t)
    panel.buttons.start.click()
    until(lambda: t.state.step > 5)
    panel.buttons.pause.click()
    assert panel.buttons.pause.description in ("Pausing…", "Resume")
    until(lambda: db.phase(t) == "paused")
    at = t.state.step
    until(lambda: "paused at step" in panel.ui.head.value)
    assert panel.buttons.pause.description == "Resume"
    time.sleep(0.2)
    assert t.state.step == at
    panel.buttons.pause.click()
    until(lambda: t.state.step > at + 3)
    panel.buttons.stop.click()
    assert panel.buttons.stop.description == "Stopping…" and panel.buttons.stop.disabled
    panel.buttons.stop.click()  # a second click does nothing
    assert t.wait().status == "stopped"
    panel.settle()
    events = [r["event"] for r in read_metrics(t.output_dir)]
    assert events.count("pause") == events.count("resume") == events.count("end") == 1
    assert panel.buttons.start.description == "Continue" and "stopped at step" in panel.ui.head.value
    panel.buttons.start.click()  # goes on from the checkpoint
    stopped = t.results.steps
    until(lambda: t.state.step > stopped)
    t.stop()
    t.wait()
    panel.settle()


def test_the_chart_is_up_to_date_while_a_run_is_paused(trainer):
    "Even where the budget would not allow another drawing for a long time: nothing is taken from a run that holds."
    t = slow_down(trainer(5000))
    panel = db.TrainingDashboard(t)
    panel.charts.share = 1e-9  # of the time: after the first drawing the next one is far away
    panel.buttons.start.click()
    until(lambda: t.state.step > 20)
    t.pause()
    until(lambda: db.phase(t) == "paused")
    try:
        until(lambda: "paused at step" in panel.ui.caption.value, 20)
    finally:
        t.stop()
        t.wait()


def test_learning_rate(trainer):
    t = slow_down(trainer(steps=5000))
    panel = db.TrainingDashboard(t)
    panel.buttons.start.click()
    until(lambda: t.state.step > 2)
    for wrong in "0", "-3", "inf", "nan", "fast", "":
        panel.buttons.rate.value = wrong
        panel.buttons.apply.click()
        assert "positive number" in panel.ui.message.value
    assert t.control.lr_multiplier == 1.0
    panel.buttons.rate.value = "0,25"  # a comma is how half the world writes it
    panel.buttons.apply.click()
    until(lambda: any(r["event"] == "lr_multiplier" for r in t.history))
    assert "× 0.25" in panel.ui.message.value
    t.stop()
    t.wait()
    panel.settle()
    assert load_run(t.output_dir).records[-1]["event"] == "end"
    assert torch.load(t.results.latest_checkpoint, weights_only=True)["counters"]["lr_multiplier"] == 0.25


def test_sample_now(trainer):
    t = slow_down(trainer(steps=5000))
    panel = db.TrainingDashboard(t, prompt="a")
    panel.buttons.start.click()
    until(lambda: t.state.step > 2)
    panel.buttons.prompt.value = TRAP
    panel.buttons.sample.click()
    until(lambda: any(r.get("prompt") == TRAP for r in t.history))
    until(lambda: "&lt;script&gt;" in panel.ui.samples.value)
    t.stop()
    t.wait()
    panel.settle()
    assert "<script>" not in panel.page() and "<img src=x" not in panel.page()


def test_exception_in_the_thread(trainer):
    class Trip(Callback):
        def on_step(self, trainer, record):
            if record["step"] == 25:
                raise RuntimeError(TRAP)

    t = trainer(callbacks=[Trip()])
    panel = db.TrainingDashboard(t)
    panel.buttons.start.click()
    with pytest.raises(RuntimeError):
        t.wait()
    panel.settle()
    shown = panel.ui.problem.value
    assert "RuntimeError: &lt;script&gt;" in shown and "<script>" not in shown and "<details>" in shown
    assert "latest_checkpoint.pt" in shown, "the last good checkpoint"
    assert "failed" in panel.ui.head.value
    assert json.loads((t.output_dir / "run.json").read_text())["status"] == "failed"


def test_an_error_before_the_first_step_is_shown_too(trainer):
    trainer(steps=20, progress=False).train()
    panel = db.TrainingDashboard(trainer(steps=20))  # the folder holds an earlier run
    panel.buttons.start.click()
    until(lambda: panel.watcher is None)
    assert "holds an earlier run" in panel.ui.problem.value and "failed" in panel.ui.head.value
    assert not panel.buttons.start.disabled


def test_blocking_train_draws_from_the_main_thread(trainer):
    t = trainer()
    panel = db.TrainingDashboard(t)
    before = panel.charts.calls
    assert t.train().status == "finished"
    assert "finished after step 60" in panel.ui.head.value and panel.charts.calls > before


@pytest.mark.parametrize("paused", [False, True])
def test_curve_equals_that_of_a_run_without_panel(trainer, paused):
    torch.manual_seed(0)
    plain = trainer(name="plain", progress=False)
    plain.train()
    torch.manual_seed(0)
    watched = slow_down(trainer(name="watched"))
    panel = db.TrainingDashboard(watched, prompt="First")
    panel.buttons.start.click()
    if paused:
        until(lambda: watched.state.step > 2)
        panel.buttons.pause.click()
        until(lambda: "pause" in {r["event"] for r in watched.history})
        panel.buttons.pause.click()
    watched.wait()
    panel.settle()
    assert paused == ("resume" in {r["event"] for r in watched.history})
    losses = [series(t.history, "train", "loss") for t in (plain, watched)]
    assert losses[0] == losses[1]


def widget_count():
    gc.collect()
    found = getattr(ipywidgets.widgets.widget, "_instances", None)
    return len(ipywidgets.Widget.widgets if found is None else found)


def test_widget_count_is_constant_and_drawing_rare(trainer):
    t = slow_down(trainer(steps=200), 0.01)
    panel = db.TrainingDashboard(t, prompt="First")
    before, begun, drawn = widget_count(), time.monotonic(), panel.charts.calls
    panel.buttons.start.click()
    t.wait()
    seconds = time.monotonic() - begun
    panel.settle()
    assert widget_count() == before
    assert panel.charts.calls - drawn <= seconds + 3, "at most one picture a second, and the last one"
    assert panel.numbers.calls <= 2 * seconds + 6


def test_at_most_2000_points_are_drawn(parts):
    records = [{"event": "train", "step": s, "loss": 5 + s % 3, "lr": 1e-3, "grad_norm": 1.0} for s in range(10_000)]
    records += [{"event": "eval", "step": s, "val_loss": 5.0} for s in range(0, 10_000, 5)]
    for others in 0, 3:
        run = db.Run(Path("x"), records, {"status": "finished"}, {})
        figure = plot_run(run, [db.Run(Path(str(i)), records, {}, {}) for i in range(others)])
        drawn = sum(len(line.get_xdata()) for axes in figure.axes for line in axes.lines if len(line.get_xdata()) > 2)
        assert drawn <= 2000


def test_options_and_files(trainer):
    trainer(steps=20, name="earlier", progress=False).train()
    t = trainer(steps=20, name="later", progress=False)
    t.train()
    panel = db.show_run(t.output_dir)
    assert list(panel.ui.others.options) == ["earlier"]
    first = panel.ui.chart.value
    panel.ui.log_y.value = True
    panel.ui.others.value = ("earlier",)
    panel.charts.settle()
    assert panel.ui.chart.value != first and panel.charts.error is None
    panel.ui.save.click()
    until(lambda: "download" in panel.ui.links.value)
    files = {p.suffix: p for p in (t.output_dir / "export").iterdir()}
    assert set(files) == {".csv", ".json", ".png", ".svg"}
    assert json.loads(files[".json"].read_text())["records"] == read_metrics(t.output_dir)


def test_text_and_html_modes(trainer, monkeypatch, capsys):
    monkeypatch.setenv("LLMBUILDER_UI", "text")
    t = trainer(steps=20)
    db.watch(t, prompt="First")
    t.wait()
    until(lambda: "step     20/20" in capsys.readouterr().err or t.results is not None)
    monkeypatch.setenv("LLMBUILDER_UI", "html")
    page = db.show_run(t.output_dir).page()
    assert "<img" in page and 'alt="Run ' in page and "show_run(" in page


def test_text_mode_prints_a_line_per_log_interval_and_no_carriage_returns(run, small_text):
    code = f"""
from llmbuilder.config import *; from llmbuilder.data import TextDataset; from llmbuilder.model import build_model
from llmbuilder.training import Trainer; from llmbuilder.dashboard import watch; from llmbuilder.tokenizer import train_tokenizer
tokenizer = train_tokenizer([{"'word and word ' * 200"}], vocab_size=280)
data = TextDataset("training_data.txt", 16, tokenizer)
model = build_model(ModelConfig(vocab_size=280, max_seq_length=16, embedding_dim=16, num_layers=1, num_heads=2))
t = Trainer(model, data, None, TrainingConfig(max_steps=20, num_epochs=99, batch_size=4, log_every=5, device="cpu"), "out")
watch(t); t.wait()
"""
    done = run("-c", code, env={"LLMBUILDER_UI": "text"})
    assert done.returncode == 0, done.stderr
    lines = (done.stdout + done.stderr).splitlines()
    assert sum("loss" in line and "/20" in line for line in lines) >= 4
    assert "\r" not in done.stdout + done.stderr


# ---- runs


def test_a_killed_run_says_so_and_how_to_go_on(run, folder):
    text = folder / "t.txt"
    text.write_text("the cat sat on the mat and the dog sat on the log. " * 100)
    code = """
from llmbuilder.config import *; from llmbuilder.data import TextDataset; from llmbuilder.model import build_model
from llmbuilder.training import Trainer; from llmbuilder.tokenizer import train_tokenizer; import os, signal
tokenizer = train_tokenizer("t.txt", vocab_size=280)
class Kill:
    name = "kill"
    def __getattr__(self, event):
        if not event.startswith("on_"): raise AttributeError(event)
        return lambda t, r=None: os.kill(os.getpid(), signal.SIGKILL) if event == "on_step" and r["step"] == 33 else None
    def state_dict(self): return {}
    def load_state_dict(self, s): pass
model = build_model(ModelConfig(vocab_size=280, max_seq_length=16, embedding_dim=16, num_layers=1, num_heads=2))
data = TextDataset("t.txt", 16, tokenizer)
settings = TrainingConfig(max_steps=90, num_epochs=99, batch_size=4, log_every=5, eval_every=10, device="cpu")
Trainer(model, data, data, settings, "out", callbacks=[Kill()], progress=False).train()
"""
    if os.name == "nt":
        pytest.skip("no SIGKILL on Windows")
    assert run("-c", code).returncode == -9
    found = load_run("out")
    assert found.state == "interrupted" and found.status == "interrupted at step 30 of 90"
    assert found.resume_command == "Trainer(model, dataset, output_dir='out', resume=\"auto\").train()"
    panel = db.show_run("out")
    assert "interrupted at step 30" in panel.ui.head.value and "resume=" in panel.ui.message.value
    (Path("out") / "run.json").write_text(json.dumps({**found.info, "data": ["t.txt"]}))
    assert load_run("out").resume_command == "llmbuilder train resume out"


def test_a_live_run_of_this_process_is_running(trainer):
    t = slow_down(trainer(steps=5000, progress=False))
    t.start()
    until(lambda: t.state.step > 3)
    assert load_run(t.output_dir).status.startswith("running at step")
    t.stop()
    t.wait()
    assert load_run(t.output_dir).state == "stopped"


def test_damaged_files_are_no_reason_to_fail(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"event": "train", "step": 1, "loss": 2.0}\n[1, 2]\n"x"\n\xff\xfe\n{"event"')
    (tmp_path / "run.json").write_text("[]")
    run = load_run(tmp_path)
    assert run.step == 1 and run.state == "unknown" and len(list_runs(tmp_path)) == 1
    assert "1,2.0" in records_csv(run.records) and compare_runs([run]).rows
    assert plot_run(run) is not None and run_curves(run.records)["loss"] == ([1], [2.0])


# ---- the playground


@pytest.fixture(scope="module")
def trained(parts, tmp_path_factory):
    "A run's folder."
    folder = tmp_path_factory.mktemp("trained") / "run"
    torch.manual_seed(1)
    settings = TrainingConfig(max_steps=40, num_epochs=99, batch_size=8, learning_rate=5e-3, save_every=20, device="cpu")
    Trainer(tiny(), parts[1], parts[2], settings, folder, progress=False).train()
    return folder


def test_playground_text_equals_the_copied_call(trained):
    play = db.SamplingPlayground(trained, prompt="First ", max_new_tokens=12, top_k=30, temperature=0.9)
    play.ui.generate.click()
    play.settle()
    assert play.painter.error is None
    calls, note = db.same_again(*play.used, play.source.path("best"))
    import llmbuilder

    assert eval(calls[0], {"llmbuilder": llmbuilder}) == play.text_now
    shown = play.ui.calls.value
    assert "generate_text(" in shown and "llmbuilder generate" in shown and note == ""


def test_cli_line_gives_the_same_text(trained, cli):
    play = db.SamplingPlayground(trained, prompt="First ", max_new_tokens=8)
    play.ui.generate.click()
    play.settle()
    import shlex

    line = shlex.split(db.same_again(*play.used, play.source.path("best"))[0][1])
    done = cli(*line[1:])
    assert done.returncode == 0, done.stderr
    assert play.text_now.strip() in done.stdout


@pytest.mark.parametrize("name, value, key, expected", [
    ("temperature", 0.0, "temperature", 0.0), ("top_k", 7, "top_k", 7), ("top_k", 0, "top_k", None), ("top_p", 0.5, "top_p", 0.5),
    ("top_p", 1.0, "top_p", None), ("min_p", 0.2, "min_p", 0.2), ("repetition_penalty", 1.3, "repetition_penalty", 1.3),
    ("max_new_tokens", 33, "max_new_tokens", 33)])  # fmt: skip
def test_each_setting_by_slider_and_by_number(trained, name, value, key, expected):
    play = db.SamplingPlayground(trained)
    number = play.ui.settings.numbers[name]
    for widget in number.field, number.slider:
        number.value = 1 if name != "max_new_tokens" else 2
        widget.value = value
        assert getattr(play.ui.settings.config(), key) == expected
        assert number.field.value == number.slider.value == value
    play.settle()
    assert play.painter.error is None


def test_greedy_says_so_and_cut_tokens_are_marked(trained):
    play = db.SamplingPlayground(trained, prompt="First")
    play.ui.settings.numbers["temperature"].value = 0
    play.settle()
    assert "greedy" in play.ui.note.value and play.ui.filters.value.count("cut") >= 19
    assert "repetition penalty → temperature → top-k → top-p → min-p" in play.ui.filters.value


def test_seed_lock_and_reroll(trained):
    play = db.SamplingPlayground(trained, prompt="First", max_new_tokens=3)
    seed = play.ui.settings.seed.value
    play.ui.generate.click()
    play.settle()
    assert play.ui.settings.seed.value == seed
    play.ui.reroll.click()
    play.settle()
    assert play.ui.settings.seed.value != seed
    play.ui.settings.lock.value, seed = False, play.ui.settings.seed.value
    play.ui.generate.click()
    play.settle()
    assert play.ui.settings.seed.value != seed


def test_stop_within_one_token(trained, monkeypatch):
    play = db.SamplingPlayground(trained, prompt="First", max_new_tokens=400)
    seen = []
    real = db.continue_ids

    def slowed(generator, ids, config, on_text, stop):
        def watched(text):
            seen.append(text)
            if len(seen) == 5:
                play.ui.stop.click()

        return real(generator, ids, config, watched, stop)

    monkeypatch.setattr(db, "continue_ids", slowed)
    play.ui.generate.click()
    play.settle()
    assert len(play.ids) - play.start == 5


def test_branch_keeps_what_was_before(trained):
    play = db.SamplingPlayground(trained, prompt="First ", max_new_tokens=10)
    play.ui.generate.click()
    play.settle()
    before, at = list(play.ids), play.start + 2
    play.ui.tokens.pool[at].click()
    play.settle()
    assert play.at == at and len(play.ui.others.box.children) == 12
    choice = next(i for i, t in enumerate(play.shown.tokens) if t.id != before[at])
    wanted = play.shown.tokens[choice].id
    play.ui.others.pool[choice].click()
    play.settle()
    assert play.ids[: at + 1] == before[:at] + [wanted] and play.at is None


def test_two_checkpoints_side_by_side(trained):
    play = db.SamplingPlayground(trained, prompt="First ", max_new_tokens=5)
    play.ui.beside.click()
    assert "at least two" in play.ui.note.value
    for name in "best", "step_00000020":
        play.ui.model.value = name
        play.ui.keep.click()
    play.ui.beside.click()
    play.settle()
    assert [k[0] for k in play.kept] == ["best", "step_00000020"] and all(k[2] for k in play.kept)
    for _ in range(3):
        play.ui.keep.click()
    assert len(play.kept) == 4 and "four" in play.ui.note.value


def test_playground_during_training(trainer):
    t = slow_down(trainer(steps=5000, progress=False))
    t.start()
    until(lambda: t.state.step > 3)
    play = db.SamplingPlayground(t, prompt="First", max_new_tokens=5)
    play.ui.generate.click()
    play.settle()
    assert play.text_now.startswith("First") and play.painter.error is None
    inspector = db.AttentionInspector(t, text="First Citizen")
    inspector.settle()
    assert inspector.inside is not None and inspector.painter.error is None
    t.stop()
    t.wait()


def test_streamed_text_holds_back_incomplete_characters(parts):
    tokenizer, parts_seen = parts[0], []
    ids = tokenizer.encode("é")
    decoder = tokenizer.stream_decoder()
    for id in ids:
        parts_seen.append(decoder.push(id))
    assert "".join(parts_seen) == "é" and "\ufffd" not in "".join(parts_seen)


def test_scores_agree_with_the_generation_module(trained):
    from llmbuilder.generation import score_text

    g = TextGenerator.from_checkpoint(trained)
    ours = db.score_ids(g, g.tokenizer.encode("First Cit"))[1:]
    theirs = score_text(g.model, g.tokenizer, "First Cit", bos=True)[1:]
    assert [s.id for s in ours] == [s.id for s in theirs][-len(ours):]
    assert all(math.isclose(a.probability, b.probability, abs_tol=1e-5) for a, b in zip(ours, theirs[-len(ours):]))


# ---- explorer and inspector


@pytest.mark.parametrize("text", ["", " ", "naïve 🙂 日本", "a\tb\r\nc", "▁ \u2581", TRAP, "\x00\x07", "e\u0301"])
def test_explorer_survives_any_text(parts, text):
    view = db.TokenizerExplorer({"one": parts[0], "two": parts[0]}, text)
    assert view.cut.value.count("✓") == 2
    assert "<script>" not in view.cut.value and "<img" not in view.cut.value
    assert "".join(g.text for g in db.token_groups(parts[0], text)) == text
    view.small.value = text[:50]
    assert db.merge_steps(parts[0], text[:50])[-1].symbols == parts[0].pieces(text[:50]) or "\x00" in text


def test_explorer_other_kinds_of_tokenizer(parts):
    other = train_tokenizer(["some words and some more words " * 50], vocab_size=290, model_type="unigram")
    view = db.TokenizerExplorer({"unigram": other, "bpe": parts[0]})
    assert "does not merge" in view.merges.value
    view.left.value = parts[0]
    view.at.value = 1
    assert "step 1 of" in view.merges.value


def test_explorer_caps_long_texts(parts):
    page = db.tokens_html(parts[0], "word " * 20_000)
    assert "first 50,000" in page and "first 1,500" in page and len(page) < 600_000


@pytest.mark.parametrize("config", [{}, {"num_kv_heads": 1}, {"norm": "layernorm", "position": "learned", "mlp": "gelu", "qk_norm": False},
                                    {"tie_embeddings": False}])  # fmt: skip
def test_inside_equals_the_fast_path(config):
    torch.manual_seed(0)
    model = build_model(ModelConfig(vocab_size=50, max_seq_length=24, embedding_dim=32, num_layers=3, num_heads=4, **config)).eval()
    ids = torch.randint(0, 50, (24,)).tolist()
    inside = db.look_inside(model, ids)
    with torch.no_grad():
        assert (inside.logits - model(torch.tensor([ids]))[0]).abs().max() < 1e-5
    for m in inside.maps:
        assert torch.allclose(m.sum(-1), torch.ones(m.shape[:2]), atol=1e-6) and (m.triu(1) == 0).all()


def test_heads_off_positions_and_lens(trained):
    view = db.AttentionInspector(trained, text="First Citizen: " + TRAP[:8])
    view.heads.grid[(1, 1)].click()
    view.switch.value = True
    view.settle()
    assert view.off == {(1, 1)} and "Switched off: 2.2" in view.message.value and "without" in view.details.value
    view.heads.grid[(0, 0)].click()
    view.settle()
    assert view.switch.value is False and view.off == {(1, 1)}, "looking at another head changes nothing"
    view.at.field.value = 3
    view.tokens.pool[2].click()
    view.settle()
    assert view.at.value == 2 and view.painter.error is None
    view.all_on.click()
    view.settle()
    assert view.without is None and "<script" not in view.details.value
    view.input.value = ""
    view.settle()
    assert "no token" in view.message.value


def test_inspector_cuts_long_texts(trained):
    view = db.AttentionInspector(trained, text="First Citizen: speak, speak. We know it, we know it.")
    view.settle()
    assert "shown are the first 16" in view.message.value


# ---- everywhere


def test_still_pages_of_every_view_are_escaped(trained, parts):
    play = db.SamplingPlayground(trained, prompt=TRAP, max_new_tokens=3)
    play.ui.generate.click()
    play.settle()
    pages = [play.page(), db.TokenizerExplorer(parts[0], TRAP).page(), db.AttentionInspector(trained, text=TRAP).page()]
    run = load_run(trained)
    nasty = db.Run(Path("x") / TRAP.replace("/", ""), run.records, {"status": "failed", "error": TRAP}, {})
    pages.append(db.show_run(nasty).page())
    for page in pages:
        assert "<script" not in page and "<img src=x" not in page


def test_every_control_explains_itself(trained, trainer, parts):
    views = [db.TrainingDashboard(trainer()), db.SamplingPlayground(trained), db.TokenizerExplorer(parts[0]),
             db.AttentionInspector(trained)]  # fmt: skip
    for view in views:
        todo, seen = [view.box], []
        while todo:
            widget = todo.pop()
            todo += getattr(widget, "children", ())
            seen.append(widget)
        controls = [w for w in seen if isinstance(w, (ipywidgets.Button, ipywidgets.ValueWidget)) and not isinstance(
            w, (ipywidgets.HTML, ipywidgets.Image, ipywidgets.Box))]  # fmt: skip
        name = "tooltip" if ipywidgets.Text().has_trait("tooltip") else "description_tooltip"
        silent = [w for w in controls if not getattr(w, "tooltip" if isinstance(w, ipywidgets.Button) else name)]
        assert controls and not silent, silent
        fields = [w for w in seen if isinstance(w, (ipywidgets.BoundedIntText, ipywidgets.BoundedFloatText))]
        sliders = [w for w in seen if isinstance(w, (ipywidgets.IntSlider, ipywidgets.FloatSlider))]
        assert len(fields) >= len(sliders), "a number field beside every slider"


@pytest.mark.full
@pytest.mark.timeout(900)
def test_ten_thousand_steps_leave_a_small_notebook(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    cells = [
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import torch; torch.set_num_threads(1)\n"
        "from llmbuilder.config import *; from llmbuilder.data import TextDataset; from llmbuilder.model import build_model\n"
        "from llmbuilder.training import Trainer; from llmbuilder.dashboard import watch\n"
        "from llmbuilder.tokenizer import train_tokenizer\n"
        "text = 'the cat sat on the mat and the dog sat on the log. ' * 200\n"
        "open('t.txt', 'w').write(text); tokenizer = train_tokenizer('t.txt', vocab_size=280)\n"
        "data, exam = TextDataset('t.txt', 8, tokenizer).split(0.1)\n"
        "model = build_model(ModelConfig(vocab_size=280, max_seq_length=8, embedding_dim=8, num_layers=1, num_heads=1))\n"
        "settings = TrainingConfig(max_steps=10_000, num_epochs=10**6, batch_size=1, log_every=10, eval_every=1000, device='cpu')\n"
        "trainer = Trainer(model, data, exam, settings, 'run')",
        "watch(trainer, prompt='the')",
        "import ipywidgets; found = getattr(ipywidgets.widgets.widget, '_instances', None)\nbefore = len(found)\n"
        "trainer.wait(); print('widgets more:', len(found) - before)",
        "import time; time.sleep(3)",
    ]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    NotebookClient(nb, timeout=800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    nbformat.write(nb, tmp_path / "out.ipynb")
    size = (tmp_path / "out.ipynb").stat().st_size
    assert "widgets more: 0" in json.dumps([o for c in nb.cells for o in c.outputs])
    assert size < 200_000, f"{size:,} bytes"


OLD_WIDGETS = ["ipywidgets==7.7.1", "widgetsnbextension<4", "jupyterlab-widgets<3", "ipython_genutils"]
QUICK = "start_to_end or learning_rate or each_setting or branch or heads_off or other_kinds or explains_itself"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_views_on_ipywidgets_7(tmp_path, request):
    "Colab has ipywidgets 7.7.1: the tests above again, with that version in front of this environment's packages; all of them with --full."
    target = tmp_path / "old"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), *OLD_WIDGETS]
    done = subprocess.run(pip, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        pytest.skip("ipywidgets 7.7.1 can't be installed here: " + done.stderr[-200:])
    env = {**os.environ, "PYTHONPATH": f"{target}{os.pathsep}{ROOT}", "LLMBUILDER_UI": "widgets"}
    version = subprocess.run([sys.executable, "-c", "import ipywidgets; print(ipywidgets.__version__)"], env=env, capture_output=True, text=True)
    assert version.stdout.strip() == "7.7.1", version.stderr
    some = [] if request.config.getoption("--full") else ["-k", QUICK]
    again = subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--deselect", f"{__file__}::{request.node.name}",
                            *some, __file__], env=env, capture_output=True, text=True, cwd=ROOT, stdin=subprocess.DEVNULL)  # fmt: skip
    shutil.rmtree(target)
    assert again.returncode == 0 and " passed" in again.stdout, again.stdout[-3000:] + again.stderr[-1000:]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", ["text", "widgets"])
@pytest.mark.parametrize("name", ["watch_it_learn", "play_with_sampling", "inside_your_model"])
def test_tutorials_run_headless(name, mode, tmp_path, monkeypatch, request):
    "In a kernel without a page: nbclient, in text mode and with widgets that nobody sees."
    import nbformat
    from nbclient import NotebookClient

    if mode == "widgets" and name != "watch_it_learn" and not request.config.getoption("--full"):
        pytest.skip("takes long: runs with --full")
    monkeypatch.setenv("LLMBUILDER_UI", mode)
    monkeypatch.setenv("LLMBUILDER_QUICK", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    nb = nbformat.read(ROOT / "nbs" / "tutorials" / f"{name}.ipynb", as_version=4)
    NotebookClient(nb, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [o for c in nb.cells for o in c.get("outputs", ())]
    live = [o for o in outputs if "application/vnd.jupyter.widget-view+json" in o.get("data", {})]
    printed = "".join(o.get("text", "") for o in outputs if o.output_type == "stream")
    assert bool(live) == (mode == "widgets")
    if name == "watch_it_learn" and mode == "text":
        assert sum("loss" in line and "/40" in line for line in printed.splitlines()) >= 4 and "\r" not in printed
    if name == "watch_it_learn" and mode == "widgets":
        pages = "".join(str(o["data"].get("text/html", "")) for o in outputs if "data" in o)
        assert len(live) == 1, "show_run alone: the panel of the run gave way to its still page"
        assert "finished after step 40" in pages and "alt=\"Run watch_it_learn" in pages
