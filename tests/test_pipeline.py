"""llmbuilder.train: what is made again, what is reused, what is kept, and what is refused."""
import json
import shutil

import pytest
import torch

import llmbuilder as lb
from llmbuilder.checkpoint import RunFolder, verify_checkpoint
from llmbuilder.pipeline import (
    Pipeline, keep_tokenizer, make_plan, open_run, own_files, remove_own, resume_plan, run_plan, stage_key, train)
from llmbuilder.training import Callback

SMALL = {
    "vocab_size": 300,
    "block_size": 16,
    "model": {"embedding_dim": 16, "num_layers": 1, "num_heads": 2},
    "training": {"num_epochs": 2, "batch_size": 4, "learning_rate": 3e-3},
}


def changed(**training):
    return {**SMALL, "training": SMALL["training"] | training}


class StopAt(Callback):
    name = "stop at"

    def __init__(self, step):
        self.step = step

    def on_step(self, trainer, record):
        if record["step"] == self.step:
            trainer.stop()


@pytest.fixture
def data(folder, text):
    "A folder with two text files."
    place = folder / "téxts"
    place.mkdir()
    (place / "a.txt").write_text(text[:600], encoding="utf-8")
    (place / "b.txt").write_text(text[600:], encoding="utf-8")
    return place


@pytest.fixture
def done(data, capsys):
    "A finished run whose output lies inside the data folder; what it said is thrown away."
    pipeline = train(data, data / "output", SMALL)
    capsys.readouterr()
    return pipeline


def weights(pipeline):
    return torch.cat([w.flatten() for w in pipeline.model.state_dict().values()])


def test_first_run(done, data):
    assert isinstance(done, Pipeline) and done.results.status == "finished" and done.report.files == 2
    for path in done.paths.values():
        assert path.exists()
    assert done.model_path.name == "best_checkpoint.pt" and done.tokenizer_path == data / "output" / "tokenizer"
    assert done.tokenizer == lb.Tokenizer.load(done.tokenizer_path)
    assert done.model.config.vocab_size == done.tokenizer.vocab_size <= 300
    assert str(done.tokenizer_path) in str(done) and str(done.model_path) in str(done)
    assert done.generate("The harbour", max_new_tokens=5, seed=1).startswith("The harbour")
    assert len(done.generate(["The", "A"], max_new_tokens=2)) == 2


def test_same_again_is_reused(done, data, capsys):
    again = train(data, data / "output", SMALL)
    assert again.reused and "nothing to train" in capsys.readouterr().err
    assert torch.equal(weights(again), weights(done))
    assert str(again.results) == str(done.results) and again.results.history == done.results.history
    assert [p.name for p in (data / "output").glob("checkpoints.*")] == []


def test_settings_that_only_watch_do_not_train_again(done, data):
    assert train(data, data / "output", changed(log_every=1, save_every=3, max_checkpoints=2)).reused


def test_generation_settings_do_not_train_again(done, data):
    again = train(data, data / "output", SMALL | {"generation": {"max_new_tokens": 0}})
    assert again.reused and again.generate("The") == "The"


def test_changed_config_moves_the_run_aside(done, data):
    before = verify_checkpoint(done.model_path).step
    again = train(data, data / "output", changed(learning_rate=1e-3))
    assert not again.reused and not torch.equal(weights(again), weights(done))
    old = data / "output" / "checkpoints.1"
    assert verify_checkpoint(old / "latest_checkpoint.pt").step == before
    assert (old / "metrics.jsonl").exists() and json.loads((old / "run.json").read_text())["status"] == "finished"
    train(data, data / "output", changed(learning_rate=2e-3))
    assert (data / "output" / "checkpoints.2" / "best_checkpoint.pt").exists()


def test_changed_text_and_added_file_are_noticed(done, data):
    (data / "c.txt").write_text("The sea was calm, and a third file lay on the quay.\n", encoding="utf-8")
    again = train(data, data / "output", SMALL)
    assert not again.reused and again.report.files == 3
    (data / "c.txt").write_text("The sea was rough, and a third file lay on the quay.\n", encoding="utf-8")
    assert not train(data, data / "output", SMALL).reused


def test_a_changed_date_is_no_change(done, data):
    (data / "a.txt").touch()
    assert train(data, data / "output", SMALL).reused


def test_output_is_never_read_as_text(done, data):
    (data / "output" / "notes.txt").write_text("written by somebody into the output folder\n" * 9)
    assert train(data, data / "output", SMALL).reused


def test_output_folder_may_be_the_data_folder(data):
    first = train(data, data, SMALL)
    assert first.report.files == 2 and train(data, data, SMALL).reused


def test_a_pipeline_keeps_its_model_when_the_folder_gets_another(done, data):
    before = done.generate("The", max_new_tokens=5, seed=1)
    train(data, data / "output", changed(learning_rate=1e-3))
    assert done.generate("The", max_new_tokens=5, seed=1) == before


def test_interrupted_run_goes_on_and_ends_like_one_that_was_not(data, folder, capsys):
    whole = train(data, folder / "whole", SMALL)
    cut = train(data, folder / "cut", SMALL, callbacks=[StopAt(3)])
    assert cut.results.status == "stopped" and cut.results.steps == 3
    capsys.readouterr()
    went_on = train(data, folder / "cut", SMALL)
    assert "was not finished: going on" in capsys.readouterr().err
    assert went_on.results.status == "finished" and went_on.results.steps == whole.results.steps
    assert torch.equal(weights(went_on), weights(whole))
    assert train(data, folder / "cut", SMALL).reused


def test_a_killed_run_goes_on(data, folder):
    train(data, folder / "out", SMALL, callbacks=[StopAt(3)])
    RunFolder(folder / "out").update(status="running", pid=999_999_999)  # what kill -9 leaves behind
    assert train(data, folder / "out", SMALL).results.status == "finished"


def test_two_runs_into_one_folder(data, folder):
    holder = RunFolder(folder / "out")
    holder.acquire()
    try:
        with pytest.raises(lb.LLMBuilderError, match="process"):
            train(data, folder / "out", SMALL)
    finally:
        holder.release()
    assert train(data, folder / "out", SMALL).results.status == "finished"


def test_clean_removes_ours_and_nothing_else(done, data):
    out = data / "output"
    train(data, out, changed(learning_rate=1e-3))  # leaves checkpoints.1
    theirs = [out / "notes.txt", out / "checkpoints" / "thesis.txt", out / "checkpoints.1" / "step_x.pt", out / "my.pt"]
    theirs += [out / "checkpoints.old" / "latest_checkpoint.pt", out / "tokenizer" / "words.txt", out / "table.json"]
    for path in theirs:
        path.parent.mkdir(exist_ok=True)
        path.write_text("somebody's")
    again = train(data, out, SMALL, clean=True)
    assert not again.reused and torch.equal(weights(again), weights(done))
    assert all(path.read_text() == "somebody's" for path in theirs)
    assert not (out / "checkpoints.1" / "latest_checkpoint.pt").exists()
    remove_own(out)
    assert sorted(p for p in out.rglob("*") if p.is_file() and p.name != ".lock") == sorted(theirs)


def test_clean_leaves_a_folder_alone_that_is_not_ours(data, folder):
    out = folder / "out"
    (out / "tokenizer").mkdir(parents=True)
    (out / "config.json").write_text("{}")
    (out / "tokenizer" / "tokenizer.model").write_text("somebody's")
    assert own_files(out) == []


def test_bad_input_is_refused_before_clean_removes_anything(done, data):
    with pytest.raises(lb.LLMBuilderError):
        train(data / "nowhere", data / "output", SMALL, clean=True)
    with pytest.raises(lb.ConfigError):
        train(data, data / "output", {"trainig": {}}, clean=True)
    assert done.model_path.exists()


def test_a_tokenizer_that_somebody_brought_is_moved_not_overwritten(data, folder):
    theirs = lb.train_tokenizer(["other words for another text " * 20], vocab_size=270)
    theirs.save(folder / "out" / "tokenizer")
    train(data, folder / "out", SMALL)
    assert lb.Tokenizer.load(folder / "out" / "tokenizer.1") == theirs


def test_named_tokenizer_is_made_then_used(data, folder):
    first = train(data, folder / "one", SMALL, tokenizer_dir=folder / "shared tokenizer")
    made = lb.Tokenizer.load(folder / "shared tokenizer")
    (data / "b.txt").write_text("Something quite different stands here now, in other words.\n" * 9)
    second = train(data, folder / "two", SMALL, tokenizer_dir=folder / "shared tokenizer")
    assert first.tokenizer == second.tokenizer == made
    assert train(data, folder / "two", SMALL, tokenizer_dir=folder / "shared tokenizer").reused


def test_named_tokenizer_that_is_too_large_is_refused(data, folder):
    train(data, folder / "one", SMALL | {"vocab_size": 320}, tokenizer_dir=folder / "tok")
    size = lb.Tokenizer.load(folder / "tok").vocab_size
    with pytest.raises(lb.ConfigError, match=f"set vocab_size to {size}"):
        train(data, folder / "two", SMALL | {"vocab_size": size - 1}, tokenizer_dir=folder / "tok")
    assert not list((folder / "two").rglob("*.pt"))


def test_damaged_cache_files_are_made_again(done, data, capsys):
    out = data / "output"
    tokens = bytearray((out / ".llmbuilder" / "tokens.bin").read_bytes())
    tokens[200] ^= 1
    (out / ".llmbuilder" / "tokens.bin").write_bytes(tokens)
    train(data, out, changed(learning_rate=1e-3))
    assert "encoded before" not in capsys.readouterr().err
    (out / ".llmbuilder" / "stages.json").write_text('{"tokens": [')
    train(data, out, changed(learning_rate=2e-3))
    assert "trained on" in capsys.readouterr().err
    train(data, out, changed(learning_rate=4e-3))
    assert "encoded before" in capsys.readouterr().err


def test_damaged_best_checkpoint_of_a_finished_run(done, data):
    done.model_path.unlink()  # it may be one file with the latest, under two names
    done.model_path.write_bytes(b"")
    again = train(data, data / "output", SMALL)
    assert again.reused and again.model_path.name == "latest_checkpoint.pt"


def test_a_run_that_cannot_start_leaves_the_earlier_one(done, data, monkeypatch):
    def no_room(*args):
        raise lb.LLMBuilderError("no room")

    monkeypatch.setattr("llmbuilder.training.check_disk", no_room)
    with pytest.raises(lb.LLMBuilderError, match="no room"):
        train(data, data / "output", changed(learning_rate=1e-3))
    monkeypatch.undo()
    kept = [p for p in (data / "output").rglob("latest_checkpoint.pt")]
    assert [verify_checkpoint(p).step for p in kept] == [done.results.steps]


@pytest.mark.parametrize("content", ["a b", "harbour"])
def test_tiny_text(folder, content):
    (folder / "tiny.txt").write_text(content)
    pipeline = train(folder / "tiny.txt", folder / "out", SMALL)
    assert pipeline.results.status == "finished" and pipeline.generate("a", max_new_tokens=3)
    assert train(folder / "tiny.txt", folder / "out", SMALL).reused


def test_config_in_every_form(data, folder, capsys):
    config = lb.Config.from_dict(SMALL)
    config.save(folder / "my.toml")
    keys = {make_plan(data, folder / "out", c).run_key for c in (SMALL, config, folder / "my.toml", str(folder / "my.toml"))}
    assert len(keys) == 1
    assert make_plan(data, folder / "out").config.model == lb.presets()["cpu_small"].model
    assert "preset cpu_small" in capsys.readouterr().err
    train(data, folder / "out", config)
    assert config.vocab_size == 300 and config == lb.Config.from_dict(SMALL)  # the caller's object is as it was
    config.model.num_layers = 2  # and not frozen


def test_short_text_says_so(data, folder, capsys):
    train(data, folder / "out", SMALL | {"block_size": 256})
    assert "short text:" in capsys.readouterr().err


def test_resume_plan_finds_text_settings_and_tokenizer(done, data, folder):
    plan = resume_plan(data / "output")
    assert plan.run_key == make_plan(data, data / "output", SMALL).run_key and plan.status() == "finished"
    longer = run_plan(resume_plan(data / "output", training={"num_epochs": 3}), resume="auto")
    assert longer.results.epochs == 3
    (data / "a.txt").write_text("The text has changed since, and the tokenizer stays.\n" * 20)
    assert keep_tokenizer(resume_plan(data / "output")).tokenizer_dir == data / "output" / "tokenizer"
    moved = shutil.move(data / "b.txt", folder / "elsewhere.txt")
    assert [p.resolve() for p in resume_plan(data / "output", [moved]).files] == [(folder / "elsewhere.txt").resolve()]
    with pytest.raises(lb.LLMBuilderError, match="no run"):
        resume_plan(folder / "nothing here")


@pytest.mark.parametrize("name, said", [("max_steps", "steps behind it"), ("num_epochs", "epochs behind it")])
def test_a_goal_that_lies_behind_the_run_is_refused(done, data, name, said):
    with pytest.raises(lb.ConfigError, match=f"training.{name} = 1, .* has [0-9]+ {said}"):
        resume_plan(data / "output", training={name: 1})


def test_open_run(done, data, folder):
    assert torch.equal(weights(open_run(data / "output")), weights(done))
    with pytest.raises(lb.LLMBuilderError, match="no run"):
        open_run(folder / "nothing here")


def test_keys_hold_every_part():
    assert stage_key("a", "bc") != stage_key("ab", "c")
    assert stage_key({"x": 1, "y": [2]}) == stage_key({"y": [2], "x": 1}) != stage_key({"x": 1, "y": [3]})
