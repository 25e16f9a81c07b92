"""The llmbuilder command: mostly main([...]) in this process; a process of its own where that is what is tested."""
import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from llmbuilder import __version__, cli
from llmbuilder.checkpoint import RunFolder, verify_checkpoint
from llmbuilder.cli import COMMANDS, Answer, check_flags, command, environment, flags_of, main, overview
from llmbuilder.config import ConfigError, LLMBuilderError, load_config
from llmbuilder.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX signals and shell")
FAST = "--preset tiny --vocab-size 300 --block-size 16 --model.embedding-dim 16 --model.num-layers 1".split()
TRAIN = ["train", "model", "--data", "training_data.txt", "--output", "model", "--epochs", "1", *FAST]


@pytest.fixture
def call(capsys):
    "call('info') runs main(['info']) and returns exit code, stdout and stderr."

    def run(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def model(small_text, call):
    "The output folder of a finished run."
    code, _, err = call(*TRAIN)
    assert code == 0, err
    return Path("model")


def one_sentence(err):
    "The error that a command printed: one line, no traceback."
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in err
    return line.removeprefix("error: ")


# ---- help

def test_overview_names_every_command(call):
    for words in ([], ["-h"], ["--help"], ["help"]):
        code, out, err = call(*words)
        assert code == 0 and not err
        assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(call, name):
    for flag in "-h", "--help":
        code, out, err = call(*name.split(), flag)
        assert code == 0 and not err and f"usage: llmbuilder {name}" in out
    for known in flags_of(COMMANDS[name].args):
        assert known in out
    assert not re.search(r"\(required\)\s+\(required\)|\bNone\b\s*\(default: None\)", out)


def test_every_flag_has_a_help_text(call):
    out = call("train", "model", "--help")[1]
    entries = re.split(r"\n\W*(?=--)", out)[1:]
    assert len(entries) > 70
    for entry in entries:
        words = re.sub(r"[│╭╮╰╯─\s]+|\(default: .*?\)|\{[^}]*\}|--[\w.-]+|\b[A-Z]{3,}\b|\|", " ", entry)
        assert len(words.split()) >= 2, entry


def test_short_help_is_short(call):
    out = call("train", "model", "-h")[1]
    assert "--epochs" in out and "--training.beta1" not in out and len(out.splitlines()) < 60


def test_help_of_a_group(call):
    code, out, _ = call("train", "--help")
    assert code == 0 and "train resume" in out and "generate" not in out
    assert "train model" in overview("train")


def test_version(call):
    assert call("--version")[:2] == (0, f"llmbuilder {__version__}\n")


@posix
def test_help_answers_in_half_a_second(run):
    "Processor time of a whole process, the better of three: other work on the machine is not counted."
    def seconds():
        before = os.times()
        assert run("-m", "llmbuilder", "--help").returncode == 0
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds() for _ in range(3)) < 0.5


def test_nothing_heavy_is_imported_before_it_is_needed(run):
    words = [["train", "model", "--help"], ["config", "show"], ["config", "validate", "none.json"], ["generate", "--temp"]]
    code = f"import sys; from llmbuilder.cli import main; print([main(w) for w in {words!r}], file=sys.stderr)\n"
    done = run("-c", code + "assert not {'torch', 'numpy', 'sentencepiece', 'matplotlib'} & set(sys.modules)")
    assert done.returncode == 0 and "[0, 0, 2, 2]" in done.stderr, done.stderr


# ---- usage errors

@pytest.mark.parametrize("words, said", [
    ("trian model", "did you mean train?"),
    ("train modle", "did you mean train model?"),
    ("train", "train model, train resume"),
    ("generat", "did you mean generate?"),
    ("train model --data x.txt --lr 3", "did you mean --training.learning-rate?"),
    ("train model --data x.txt --epoch 3", "did you mean --epochs?"),
    ("train model --data x.txt --training.batchsize 3", "did you mean --training.batch-size?"),
    ("generate --temp 1", "did you mean --temperature?"),
    ("train model", "--data is missing"),
    ("train model --data", "--data"),
    ("train model --data x.txt --epochs ten", "'ten' is not a whole number"),
    ("train model --data x.txt --training.learning-rate fast", "'fast' is not a number"),
    ("train model --data x.txt --training.learning-rate nan", "training.learning_rate"),
    ("train model --data x.txt --training.batch-size -1", "training.batch_size"),
    ("train model --data x.txt --training.scheduler cosin", "cosine"),
    ("train model --data x.txt --model.num-heads 5", "model.num_heads = 5"),
    ("train model --data x.txt --preset ../../etc", "there is no preset"),
    ("train model --data x.txt --preset tinny", 'did you mean "tiny"?'),
    ("train model --data x.txt --config nowhere.json", "nowhere.json"),
    ("train model --data x.txt --resume --overwrite", "give one of them"),
    ("train model --data x.txt --epochs 3 --training.num-epochs 4", "given twice"),
    ("train model --data x.txt --vocab-size 300 --model.vocab-size 400", "given twice"),
    ("info a b", "unexpected b"),
    ("checkpoint verify", "PATH is missing"),
    ("config validate nowhere.toml", "nowhere.toml"),
    ("generate --model m --prompt x --top-p 3", "top_p"),
    ("generate --model m --prompt x --max-new-tokens -1", "max_new_tokens"),
])
def test_wrong_usage(call, folder, words, said):
    code, out, err = call(*words.split())
    assert code == 2 and not out, err
    assert said in one_sentence(err)
    assert not list(folder.iterdir())


def test_debug_shows_the_traceback(call, folder):
    code, _, err = call("train", "model", "--data", "nowhere.txt", "--debug")
    assert code == 1 and "Traceback" in err and "error: " in err
    assert call("--debug", "config", "validate", "nowhere.json")[0] == 2


def test_errors_as_json(call, folder):
    code, out, err = call("train", "model", "--data", "nowhere.txt", "--json")
    assert code == 1 and json.loads(out)["error"] == one_sentence(err)
    assert "error" in json.loads(call("--json", "trian")[1])


def test_a_mistake_of_ours_has_no_traceback_either(call, monkeypatch):
    monkeypatch.setattr(cli, "overview", lambda *a: 1 / 0)
    code, _, err = call("--help")
    assert code == 1 and "ZeroDivisionError" in one_sentence(err)


@pytest.mark.parametrize("error, code, said", [
    (LLMBuilderError("a sentence"), 1, "a sentence"),
    (ConfigError("a setting"), 2, "a setting"),
    (FileNotFoundError(2, "No such file or directory", "x.txt"), 1, "x.txt: No such file or directory"),
    (OSError(28, "No space left on device"), 1, "No space left on device"),
    (MemoryError(), 1, "memory"),
])
def test_errors_become_exit_codes(call, monkeypatch, error, code, said):
    def fails(*args):
        raise error

    monkeypatch.setattr(cli, "choose", fails)
    got, _, err = call("info")
    assert got == code and said in one_sentence(err)


def test_ctrl_c_outside_of_training(call, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "choose", interrupted)
    assert call("info") == (130, "", "interrupted\n")


@posix
def test_a_closed_pipe_is_no_crash(folder):
    command = f'"{sys.executable}" -m llmbuilder config show --json | head -1'
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True)
    assert done.stdout == "{\n" and done.stderr == ""


# ---- settings

def test_precedence(call, folder, monkeypatch):
    load_config(preset="tiny", batch_size=2, learning_rate=2e-3, num_epochs=2, weight_decay=0.2).save("my.yaml")
    monkeypatch.setenv("LLMBUILDER_TRAINING__NUM_EPOCHS", "3")
    monkeypatch.setenv("LLMBUILDER_TRAINING__LEARNING_RATE", "3e-3")
    words = ["config", "show", "--preset", "gpu_large", "--config", "my.yaml", "--training.learning-rate", "4e-3", "--json"]
    training = json.loads(call(*words)[1])["training"]
    assert training["learning_rate"] == 4e-3  # flag
    assert training["num_epochs"] == 3  # environment
    assert training["batch_size"] == 2 and training["weight_decay"] == 0.2  # file
    del os.environ["LLMBUILDER_TRAINING__LEARNING_RATE"]
    assert json.loads(call(*words[:-3], "--json")[1])["training"]["learning_rate"] == 2e-3
    preset = json.loads(call("config", "show", "--preset", "gpu_large", "--json")[1])
    assert preset["training"]["gradient_accumulation_steps"] == 8 and preset["training"]["num_epochs"] == 3


def test_a_flag_that_repeats_a_default_wins_too(call, folder, monkeypatch):
    monkeypatch.setenv("LLMBUILDER_TRAINING__SHUFFLE", "false")
    monkeypatch.setenv("LLMBUILDER_MODEL__BIAS", "true")
    shown = json.loads(call("config", "show", "--training.shuffle", "--model.no-bias", "--json")[1])
    assert shown["training"]["shuffle"] is True and shown["model"]["bias"] is False


@pytest.mark.parametrize("variable, text, path, value", [
    ("TRAINING__BATCH_SIZE", "4", ("training", "batch_size"), 4),
    ("TRAINING__LEARNING_RATE", "1e-3", ("training", "learning_rate"), 1e-3),
    ("TRAINING__COMPILE", "true", ("training", "compile"), True),
    ("TRAINING__MAX_STEPS", "None", ("training", "max_steps"), None),
    ("TRAINING__WANDB_PROJECT", "plays", ("training", "wandb_project"), "plays"),
    ("TRAINING__DEVICE", "cpu", ("training", "device"), "cpu"),
    ("DATA__EXTENSIONS", ".txt,.md", ("data", "extensions"), [".txt", ".md"]),
    ("DATA__EXTENSIONS", '[".md"]', ("data", "extensions"), [".md"]),
    ("DATA__UNICODE_FORM", "none", ("data", "unicode_form"), None),
    ("DATA__TEXT_FIELD", "12", ("data", "text_field"), "12"),
    ("MODEL__GRADIENT_CHECKPOINTING", "2", ("model", "gradient_checkpointing"), 2),
    ("MODEL__VOCAB_SIZE", "500", ("tokenizer", "vocab_size"), 500),
])
def test_environment(call, folder, monkeypatch, variable, text, path, value):
    monkeypatch.setenv(f"LLMBUILDER_{variable}", text)
    shown = json.loads(call("config", "show", "--json")[1])
    assert shown[path[0]][path[1]] == value


@pytest.mark.parametrize("variable, text, said", [
    ("TRAINING__BATCH_SIZE", "many", "training.batch_size"),
    ("TRAINING__BATCH_SIZ", "4", "did you mean training.batch_size?"),
    ("TRAININ__BATCH_SIZE", "4", "sections are"),
])
def test_wrong_environment(call, folder, monkeypatch, variable, text, said):
    monkeypatch.setenv(f"LLMBUILDER_{variable}", text)
    code, _, err = call("config", "show")
    assert code == 2 and said in one_sentence(err) and f"LLMBUILDER_{variable}" in err


def test_variables_for_other_things_are_left_alone(monkeypatch):
    monkeypatch.setenv("LLMBUILDER_CACHE", "/somewhere")
    monkeypatch.setenv("LLMBUILDER_QUICK", "1")
    assert environment() == {}


@pytest.mark.parametrize("ending", ["json", "toml", "yaml"])
def test_config_files(call, folder, ending):
    file = f"my settings.{ending}"
    assert call("config", "create", file, "--preset", "tiny", "--training.seed", "7")[0] == 0
    assert load_config(file) == load_config(preset="tiny", **{"training.seed": 7})
    assert call("config", "validate", file)[0] == 0
    assert call("config", "create", file)[0] == 1 and load_config(file).training.seed == 7
    assert call("config", "create", file, "--overwrite")[0] == 0 and load_config(file).training.seed == 1337
    assert "cpu_small" not in call("config", "show", "--config", file)[2]


def test_broken_config_file(call, folder):
    Path("bad.json").write_text('{"training": {"batch_sise": 3}}')
    for words in (["config", "validate", "bad.json"], ["train", "model", "--data", "x", "--config", "bad.json"]):
        code, _, err = call(*words)
        assert code == 2 and "did you mean training.batch_size?" in one_sentence(err) and "bad.json" in err
    assert call("config", "create", "my.txt")[0] == 2


# ---- training

def test_train_model(model, call):
    made = {p.name for p in (model / "checkpoints").iterdir()}
    assert {"latest_checkpoint.pt", "best_checkpoint.pt", "epoch_0001.pt"} <= made
    assert Tokenizer.load(model / "tokenizer").vocab_size <= 300


def test_results_on_stdout_notices_on_stderr(small_text, call):
    code, out, err = call(*TRAIN, "--prompt", "The harbour")
    assert code == 0 and out.startswith("status:") and "\n\nThe harbour" in out
    assert "model/checkpoints/best_checkpoint.pt" in out.replace(os.sep, "/")
    assert "tokenizer: " in err and "status:" not in err


def test_train_model_json(small_text, call):
    code, out, _ = call(*TRAIN, "--json", "--prompt", "The")
    found = json.loads(out)
    assert code == 0 and found["results"]["status"] == "finished" and found["sample"].startswith("The")
    assert Path(found["paths"]["model"]).exists() and found["config"]["training"]["num_epochs"] == 1


def test_tokenizer_folder_that_exists_and_one_that_does_not(small_text, call):
    code, _, err = call(*TRAIN, "--tokenizer", "./tok")
    assert code == 0 and "saved to tok" in err
    made = Tokenizer.load("tok")
    code, _, err = call(*TRAIN, "--tokenizer", "./tok", "--output", "second")
    assert code == 0 and "loaded from tok" in err and Tokenizer.load("second/tokenizer") == made == Tokenizer.load("tok")


def test_one_megabyte(folder, call):
    text = (ROOT / "nbs" / "tinyshakespeare.txt").read_text(encoding="utf-8")[:1_000_000]
    Path("training_data.txt").write_text(text, encoding="utf-8")
    words = "train model --data training_data.txt --tokenizer ./tokenizer --output ./model --epochs 1 --batch-size 2"
    code, out, err = call(*words.split(), "--training.max-steps", "2", *FAST[:2], "--block-size", "32")
    assert code == 0 and "finished after 2 steps" in out, err
    assert Tokenizer.load("tokenizer").vocab_size == 8000


def test_finished_folder_is_refused_then_resumed_or_overwritten(model, call):
    before = verify_checkpoint(model / "checkpoints" / "latest_checkpoint.pt").step
    code, _, err = call(*TRAIN)
    assert code == 1 and "--resume" in one_sentence(err) and "--overwrite" in err
    assert verify_checkpoint(model / "checkpoints" / "latest_checkpoint.pt").step == before
    code, _, err = call(*TRAIN, "--resume", "--training.num-epochs", "2")
    assert code == 2  # given twice
    longer = [w if w != "1" else "2" for w in TRAIN[:8]] + FAST
    code, _, err = call(*longer, "--resume")
    assert code == 0 and f"at step {before} of" in err
    assert verify_checkpoint(model / "checkpoints" / "latest_checkpoint.pt").step == 2 * before
    code, _, err = call(*TRAIN, "--overwrite")
    assert code == 0 and "checkpoints.1" in err
    assert verify_checkpoint(model / "checkpoints.1" / "latest_checkpoint.pt").step == 2 * before


def test_resume_from_a_checkpoint(model, call):
    step = RunFolder(model).status()["step"]
    assert call("train", "resume", "model", "--epochs", "2")[0] == 0
    code, _, err = call(*[w if w != "1" else "3" for w in TRAIN[:8]], *FAST, "--resume", "model/checkpoints/epoch_0001.pt")
    assert code == 0 and f"at step {step} of {3 * step}" in err


def test_resume_with_another_model_is_refused(model, call):
    words = [w if w != "16" else "32" for w in TRAIN]
    code, _, err = call(*words, "--resume")
    assert code == 1 and one_sentence(err)
    assert verify_checkpoint(model / "checkpoints" / "latest_checkpoint.pt")


def test_train_resume(model, call):
    before = RunFolder(model).status()["step"]
    code, out, err = call("train", "resume", "model", "--epochs", "3", "--prompt", "The")
    assert code == 0 and RunFolder(model).status()["step"] == 3 * before and "\n\nThe" in out
    code, _, err = call("train", "resume", "nowhere")
    assert code == 1 and "nowhere" in one_sentence(err)


def test_output_may_be_left_out(small_text, call):
    words = [w for w in TRAIN if w not in ("--output", "model")]
    code, _, err = call("train", "model", *words[1:])
    assert code == 0, err
    (run,) = Path("runs").iterdir()
    assert RunFolder(run).status()["status"] == "finished"


def test_dry_run_writes_nothing(small_text, call):
    code, out, _ = call(*TRAIN, "--dry-run")
    assert code == 0 and "to be trained" in out and "a new run" in out
    assert [p.name for p in Path().iterdir()] == ["training_data.txt"]
    assert json.loads(call(*TRAIN, "--dry-run", "--json")[1])["status"] == "none"


def test_dry_run_of_a_finished_run(model, call):
    assert "a finished run with the same text and settings" in call(*TRAIN, "--dry-run")[1]


@pytest.mark.parametrize("name, content, said", [
    ("empty.txt", b"", "empty.txt"),
    ("utf16.txt", "hello".encode("utf-16"), "iconv"),
    ("latin.txt", "caf\xe9 au lait".encode("latin-1"), "offset 3"),
    ("binary.txt", b"abc\0def", "offset 3"),
])
def test_text_that_cannot_be_trained_on(folder, call, name, content, said):
    Path(name).write_bytes(content)
    code, _, err = call("train", "model", "--data", name, "--output", "model", *FAST)
    assert code == 1 and said in one_sentence(err) and not list(folder.rglob("*.pt"))


def test_missing_extra_is_one_sentence(small_text, call, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    code, _, err = call(*TRAIN, "--training.wandb-project", "plays")
    assert code == 1 and "llmbuilder[wandb]" in one_sentence(err)


def test_several_files_and_patterns(folder, call, text):
    Path("a b.txt").write_text(text[:500])
    Path("c.txt").write_text(text[500:])
    code, out, _ = call("train", "model", "--data", "a b.txt", "c.txt", "--dry-run", "--json", *FAST)
    assert code == 0 and len(json.loads(out)["files"]) == 2
    assert len(json.loads(call("train", "model", "--data", "*.txt", "--dry-run", "--json", *FAST)[1])["files"]) == 2


def test_train_tokenizer(small_text, call):
    words = ["train", "tokenizer", "--data", "training_data.txt", "--output", "my tok", "--vocab-size", "280", "--json"]
    code, out, _ = call(*words)
    assert code == 0 and json.loads(out)["vocab_size"] == Tokenizer.load("my tok").vocab_size == 280
    code, _, err = call(*words)
    assert code == 1 and "--overwrite" in one_sentence(err)
    assert call(*words, "--overwrite", "--model-type", "char")[0] == 0
    assert Tokenizer.load("my tok").model_type == "char"


def test_train_tokenizer_reads_data_settings_from_flag_environment_and_file(folder, call, text, monkeypatch):
    Path("texts").mkdir()
    Path("texts/page.md").write_text(text)
    words = ["train", "tokenizer", "--data", "texts", "--vocab-size", "280", "--overwrite", "--json"]
    code, _, err = call(*words)
    assert code == 1 and "data.extensions" in one_sentence(err)
    assert call(*words, "--data.extensions", ".md")[0] == 0
    load_config(**{"data.extensions": (".md",), "tokenizer.model_type": "char"}).save("my.toml")
    assert call(*words, "--config", "my.toml")[0] == 0 and Tokenizer.load("tokenizer").model_type == "char"
    assert call(*words, "--config", "my.toml", "--model-type", "bpe")[0] == 0 and Tokenizer.load("tokenizer").model_type == "bpe"
    monkeypatch.setenv("LLMBUILDER_DATA__EXTENSIONS", ".txt")
    assert call(*words, "--config", "my.toml")[0] == 1


def test_train_tokenizer_into_a_file(small_text, call):
    code, _, err = call("train", "tokenizer", "--data", "training_data.txt", "--output", "training_data.txt")
    assert code == 1 and "is a file; name a folder" in one_sentence(err)
    code, _, err = call(*TRAIN, "--tokenizer", "training_data.txt")
    assert code == 2 and "is a file; name a folder" in one_sentence(err) and not Path("model").exists()


def test_a_device_that_is_not_here_is_refused_before_anything_is_written(small_text, call):
    code, _, err = call(*TRAIN, "--training.device", "cuda:99")
    assert code == 1 and "cuda" in one_sentence(err) and [p.name for p in Path().iterdir()] == ["training_data.txt"]


# ---- generating

def test_generate(model, call):
    ask = ["generate", "--model", "model", "--prompt", "The sea", "--max-new-tokens", "8", "--seed", "3"]
    code, out, _ = call(*ask)
    assert code == 0 and out.startswith("The sea")
    assert call(*ask, "--stream")[1] == call(*ask, "--tokenizer", "model/tokenizer")[1] == out
    found = json.loads(call(*ask, "--json")[1])
    assert found["prompt"] == "The sea" and found["text"].rstrip("\n") == out.rstrip("\n")
    assert json.loads(call(*ask, "--json", "--stream")[1])["text"].rstrip("\n") == out.rstrip("\n")
    backslashes = call(*ask[:2], r".\model\checkpoints\best_checkpoint.pt", *ask[3:])
    assert backslashes[1] == out


def test_generate_reads_stdin(model, call, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("The sea\n"))
    code, out, _ = call("generate", "--model", "model", "--prompt", "-", "--max-new-tokens", "0")
    assert (code, out) == (0, "The sea\n")


def test_generation_settings_from_the_environment(model, call, monkeypatch):
    monkeypatch.setenv("LLMBUILDER_GENERATION__MAX_NEW_TOKENS", "0")
    assert call("generate", "--model", "model", "--prompt", "The")[1] == "The\n"
    assert call("generate", "--model", "model", "--prompt", "The", "--max-new-tokens", "9")[1] != "The\n"


def test_generation_settings_from_a_file(model, call, monkeypatch):
    load_config(preset="tiny", max_new_tokens=0).save("quiet.json")
    ask = ["generate", "--model", "model", "--prompt", "The", "--config", "quiet.json"]
    assert call(*ask)[1] == "The\n"
    assert call(*ask, "--max-new-tokens", "9")[1] != "The\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("The\n"))
    assert call("interactive", "--model", "model", "--config", "quiet.json")[1] == "The\n"
    assert call("generate", "--model", "model", "--prompt", "The", "--config", "none.json")[0] == 2


def test_generate_with_the_wrong_tokenizer(model, call):
    assert call("train", "tokenizer", "--data", "training_data.txt", "--output", "other", "--vocab-size", "270")[0] == 0
    code, _, err = call("generate", "--model", "model", "--tokenizer", "other", "--prompt", "x")
    assert code == 1 and "tokenizer" in one_sentence(err)


@pytest.mark.parametrize("path", ["nowhere", "training_data.txt", "."])
def test_generate_without_a_model(small_text, call, path):
    code, _, err = call("generate", "--model", path, "--prompt", "x")
    assert code == 1 and one_sentence(err)


def test_interactive(model, call, monkeypatch):
    typed = "The sea\n/max-new-tokens 0\nThe harbour\n\n/temperature hot\n/top-p 2\n/nonsense\n/settings\n/help\n/quit\nnever\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    code, out, err = call("interactive", "--model", "model", "--max-new-tokens", "3")
    assert code == 0 and out.startswith("The sea") and "\nThe harbour\n" in out and "never" not in out
    assert "max_new_tokens is 0" in out and "generation.temperature must be" in out and "/max-new-tokens 0" in out
    assert "parameters" in err


def test_interactive_ends_with_its_input(model, call, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert call("interactive", "--model", "model")[:2] == (0, "")


# ---- looking

def test_info(model, call):
    code, out, _ = call("info", "model")
    assert code == 0 and re.search(r"status: +finished", out) and "training_data.txt" in out
    facts = json.loads(call("info", "model/checkpoints/best_checkpoint.pt", "--json")[1])
    assert facts["vocabulary"] <= 300 and facts["width"] == 16 and facts["validation_loss"] > 0
    assert json.loads(call("info", "model/tokenizer", "--json")[1])["type"] == "bpe"
    assert "[training]" in call("info", "model/config.json")[1]
    machine = json.loads(call("info", "--json")[1])
    assert machine["llmbuilder"] == __version__ and "cpu" in machine["device"].lower() or machine["device"]


@pytest.mark.parametrize("path", ["nowhere", "training_data.txt", "."])
def test_info_about_something_else(small_text, call, path):
    code, _, err = call("info", path)
    assert code == 1 and one_sentence(err)


def test_checkpoint_commands(model, call):
    code, out, _ = call("checkpoint", "list", "model")
    assert code == 0 and out.count("good") == 3
    assert call("checkpoint", "verify", "model")[0] == call("checkpoint", "verify", "model/checkpoints/epoch_0001.pt")[0] == 0
    path = model / "checkpoints" / "best_checkpoint.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)
    code, _, err = call("checkpoint", "verify", path)
    assert code == 1 and "damaged" in one_sentence(err)
    code, out, _ = call("checkpoint", "verify", "model", "--json")
    assert code == 1 and sum(c["problem"] is not None for c in json.loads(out)["checkpoints"]) == 1
    assert "damaged checkpoints:" in call("info", "model")[1]
    code, _, err = call("checkpoint", "list", "nowhere")
    assert code == 1 and "nowhere" in one_sentence(err)


# ---- extending

def test_a_new_command_is_a_dataclass_and_a_function(call, monkeypatch):
    from dataclasses import dataclass

    monkeypatch.setattr(cli, "COMMANDS", dict(COMMANDS))

    @dataclass
    class CountArgs:
        "Count."

        n: int  # how far

    globals()["CountArgs"] = CountArgs

    @command("count")
    def count(args: CountArgs) -> Answer:
        return Answer(" ".join(map(str, range(args.n))), {"n": args.n})

    assert call("count", "--n", "3")[:2] == (0, "0 1 2\n")
    assert json.loads(call("count", "--n", "3", "--json")[1]) == {"n": 3}
    assert "count" in call("--help")[1]
    with pytest.raises(LLMBuilderError, match="did you mean --n"):
        check_flags(["--m", "3"], cli.COMMANDS["count"])


# ---- signals, in processes of their own

def long_run(folder):
    "A training run that would take an hour, at work."
    words = [*TRAIN[:6], *FAST, "--epochs", "100000", "--training.log-every", "1", "--training.eval-every", "0"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    process = subprocess.Popen([sys.executable, "-m", "llmbuilder", *words], cwd=folder, env=env, text=True, encoding="utf-8",
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    metrics, deadline = folder / "model" / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and '"train"' in metrics.read_text(encoding="utf-8")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.1)
    return process


@posix
@pytest.mark.slow
@pytest.mark.parametrize("number, code, status", [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")])
def test_signals_save_and_stop(small_text, number, code, status):
    process = long_run(small_text.parent)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err and "train resume model" in out
    run = RunFolder("model").status()
    assert run["status"] == status
    assert verify_checkpoint("model/checkpoints/latest_checkpoint.pt").step == run["step"] > 0
    assert main(["train", "resume", "model", "--max-steps", str(run["step"] + 2)]) == 0
    assert RunFolder("model").status()["step"] == run["step"] + 2


# ---- the course

def test_lab_copies_the_course_and_keeps_what_is_there(folder, call):
    (folder / "course").mkdir()
    (folder / "course" / "index.ipynb").write_text("mine")
    code, out, err = call("lab", "course", "--copy-only")
    assert code == 0 and "files copied to course" in out, err
    assert (folder / "course" / "index.ipynb").read_text() == "mine"
    assert (folder / "course" / "tutorials" / "watch_it_learn.ipynb").exists()
    assert json.loads(call("lab", "course", "--copy-only", "--json")[1])["files"] == []


@posix
@pytest.mark.slow
def test_lab_starts_jupyterlab_in_the_folder(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["lab", "my course", "--no-browser", "--allow-root", "--port", str(port)]
    server = subprocess.Popen([sys.executable, "-m", "llmbuilder", *words], env={**os.environ, "PYTHONPATH": str(ROOT)},
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        answer, end = None, time.monotonic() + 120
        while answer is None and time.monotonic() < end:
            assert server.poll() is None, "JupyterLab ended by itself"
            time.sleep(0.5)
            with contextlib.suppress(OSError):
                answer = urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=10).read()
        assert answer and "version" in json.loads(answer)
        assert (folder / "my course" / "00_config.ipynb").exists()
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
