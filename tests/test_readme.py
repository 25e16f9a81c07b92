"""What README.md says: its commands are taken from the file and run as they stand."""
import re
import shlex
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.M | re.S)


def block(language, word):
    "The one code block of a language that contains a word."
    (found,) = [code for lang, code in BLOCKS if lang == language and word in code]
    return found


def commands(code):
    "The commands of a shell block, each as a list of arguments."
    joined = code.replace("\\\n", " ").replace("&&\n", "\n").replace("&&", "\n")
    return [shlex.split(line) for line in joined.splitlines() if line.strip()]


def test_links_lead_to_files():
    targets = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```$", "", README, flags=re.M | re.S))
    assert any(t.endswith(".ipynb") for t in targets)
    for target in targets:
        if not re.match(r"[a-z]+:|#", target):
            assert (ROOT / target.partition("#")[0]).exists(), target


def test_the_course_table_lists_every_notebook():
    rows = re.findall(r"^\| \[[^]]+\]\((nbs/[^)]+)\) \|", README, re.M)
    numbered = [p.relative_to(ROOT).as_posix() for p in sorted((ROOT / "nbs").glob("[0-9][0-9]_*.ipynb"))]
    assert rows[: len(numbered)] == numbered


def test_first_command_installs_with_constraints_and_trains():
    venv, install, train = commands(block("bash", "venv"))
    assert venv == ["python3", "-m", "venv", ".venv"]
    assert install[0] == ".venv/bin/pip" and "constraints.txt" in install and ".[lab]" in install
    assert train[:2] == [".venv/bin/python", "docs/train_model.py"]


@pytest.mark.slow
def test_first_command_trains_and_generates(folder, run):
    train = commands(block("bash", "venv"))[-1]
    shutil.copytree(ROOT / "Model_Test", folder / "Model_Test", ignore=shutil.ignore_patterns("output"))
    shutil.copytree(ROOT / "docs", folder / "docs")
    done = run(*train[1:])
    assert done.returncode == 0, done.stderr[-2000:]
    prompt = train[train.index("--prompt") + 1]
    assert done.stdout.split("Sample generation:\n")[1].startswith(prompt)
    made = {p.name for p in (folder / "Model_Test/output/checkpoints").iterdir()}
    assert {"latest_checkpoint.pt", "best_checkpoint.pt", "epoch_0005.pt"} <= made
    assert (folder / "Model_Test/output/tokenizer").is_dir()


def test_second_command_is_what_ci_runs():
    (test,) = commands(block("bash", "tools/test.sh"))
    assert test == ["bash", "tools/test.sh"]
    assert "bash tools/test.sh" in (ROOT / ".ci/run").read_text(encoding="utf-8")


@pytest.mark.slow
def test_parts_in_python(small_text, run):
    done = run("-c", block("python", "TextDataset"))
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_command_line(small_text, run, cli):
    for name, *args in commands(block("bash", "llmbuilder train")):
        assert name == "llmbuilder"
        done = cli(*args)
        assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith(args[args.index("--prompt") + 1])
