"""What README.md says: its commands are taken from the file and run as they stand."""
import ast
import json
import re
import shlex
from configparser import ConfigParser
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


@pytest.mark.parametrize("name", ["watch_it_learn", "play_with_sampling", "inside_your_model"])
def test_tutorials_with_panels_open_in_colab(name):
    "The README links to Colab; the first code cell there installs the package from its repository, and only where it is missing."
    ini = ConfigParser(delimiters=["="])
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    repository, branch = ini["DEFAULT"]["git_url"], ini["DEFAULT"]["branch"]
    place = repository.replace("https://github.com", "https://colab.research.google.com/github")
    link = f"{place}/blob/{branch}/nbs/tutorials/{name}.ipynb"
    cells = json.loads((ROOT / "nbs" / "tutorials" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    assert f"({link})" in README and link in "".join(cells[0]["source"])
    first = "".join(next(c["source"] for c in cells if c["cell_type"] == "code"))
    assert 'if importlib.util.find_spec("llmbuilder") is None:' in first and f"%pip install -q git+{repository}" in first


def test_first_command_installs_with_constraints_and_trains():
    venv, install, train = commands(block("bash", "venv"))
    assert venv == ["python3", "-m", "venv", ".venv"]
    assert install[0] == ".venv/bin/pip" and "constraints.txt" in install and ".[lab]" in install
    assert train[:2] == [".venv/bin/python", "docs/train_model.py"]


def guide(name):
    "A snippet of the training guide; test_guide.py runs it."
    return (ROOT / "tests" / "guide" / name).read_text(encoding="utf-8")


def test_first_command_is_the_guides():
    "Word for word what test_guide.py pastes into a shell, whose output it looks at: no need to train a second time."
    train, theirs = commands(block("bash", "venv"))[-1], commands(re.sub("^#.*$", "", guide("model_test.sh"), flags=re.M))[0]
    assert train[1:] == theirs[1:] and theirs[0] == "python"


def test_second_command_is_what_ci_runs():
    (test,) = commands(block("bash", "tools/test.sh"))
    assert test == ["bash", "tools/test.sh"]
    assert "bash tools/test.sh" in (ROOT / ".ci/run").read_text(encoding="utf-8")


def test_parts_in_python_are_the_guides_quick_start():
    "The same statements, the imports first; test_guide.py runs them."
    statements = [sorted(ast.unparse(line) for line in ast.parse(code).body) for code in (block("python", "TextDataset"), guide("quick_start.py"))]
    assert statements[0] == statements[1]


def test_command_line(small_text, capsys):
    "The first command is the guide's, which test_guide.py runs; the second continues a text with what such a run leaves."
    from llmbuilder.cli import main

    (llmbuilder, *train), (_, *generate) = commands(block("bash", "llmbuilder train"))
    assert [llmbuilder, *train] == commands(guide("train_model.sh"))[0]
    small = "--preset tiny --vocab-size 300 --block-size 16 --training.max-steps 1".split()
    assert main([*train, *small]) == 0
    capsys.readouterr()
    assert main(generate) == 0
    assert capsys.readouterr().out.startswith(generate[generate.index("--prompt") + 1])
