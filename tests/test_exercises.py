"""Exercises: every folded solution is run against its check, and wrong answers are run too.

`nbdev_test` executes the hidden cell below each solution. The quick tests here see to it that this cell really runs what the
reader unfolds, and at least one planted wrong answer that must fail. The full test goes the reader's way: it runs the notebook,
then the starting point as it stands, which must fail, then the folded solution."""
import ast
import re
import sys
from pathlib import Path

sys.modules.setdefault("rfc3987_syntax", None)  # jsonschema does without it; importing it costs 4 s
import nbformat
import pytest

NBS = Path(__file__).resolve().parent.parent / "nbs"
LESSONS = sorted(
    p for p in NBS.rglob("*.ipynb")
    if not re.search(r"/[._]", p.relative_to(NBS).as_posix()) and "def check_exercise_" in p.read_text(encoding="utf-8")
)
every = pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.relative_to(NBS).as_posix())


def cells(path):
    return nbformat.read(path, as_version=4).cells


def parsed(source):
    "The statements of a cell; lines that only IPython reads are left out."
    return ast.parse("\n".join(line for line in source.splitlines() if not re.match(r"\s*[%!]", line))).body


def exercises(path):
    "Number -> (folded solution, starting point, hidden cells until the next exercise)."
    found, number = {}, None
    for cell in cells(path):
        code = cell.cell_type == "code"
        if code and (defined := re.search(r"^def check_exercise_(\d+)\(", cell.source, re.M)):
            number = int(defined[1])
            found[number] = {"solution": "", "start": "", "hidden": ""}
        elif number and not code and "<details>" in cell.source and not found[number]["solution"]:
            found[number]["solution"] = "\n".join(re.findall(r"```python\n(.*?)```", cell.source, re.S))
        elif number and code and re.match(r"#\|\s*hide", cell.source):
            found[number]["hidden"] += cell.source + "\n"
        elif number and code and (start := re.search(rf"^# (check_exercise_{number}\(.*\))", cell.source, re.M)):
            found[number]["start"] = start[1]
    return found


def shape(node):
    "A definition without its name and docstring, any other statement as it is: what has to be the same."
    if isinstance(node, ast.FunctionDef):
        return ast.dump(node.args) + "".join(map(ast.dump, node.body))
    if isinstance(node, ast.ClassDef):
        return "".join(map(ast.dump, [*node.bases, *node.body]))
    return ast.dump(node)


def is_check(node, number):
    "A call of the check, alone or inside an assertion."
    return isinstance(node, ast.Expr | ast.Assert) and f"check_exercise_{number}" in ast.unparse(node)


@every
def test_each_exercise_has_a_solution_that_runs_and_a_wrong_answer_that_fails(path):
    found = exercises(path)
    assert list(found) == list(range(1, len(found) + 1)) and 3 <= len(found) <= 5
    for number, one in found.items():
        assert one["solution"], f"exercise {number}: no folded solution in ```python"
        hidden = parsed(one["hidden"])
        ran = {shape(node) for node in hidden}
        for node in parsed(one["solution"]):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.For | ast.While):
                assert shape(node) in ran, f"exercise {number}: the hidden cell does not run this: {ast.unparse(node)[:80]}"
        called = [ast.unparse(node) for node in hidden if is_check(node, number)]
        assert any(not c.startswith("test_fail") for c in called), f"exercise {number}: the solution is not checked"
        wrong = [c for c in called if c.startswith("test_fail") or "!=" in c]
        assert wrong, f"exercise {number}: no wrong answer is tried"


def run_notebook(path):
    "A shell in which a reader has run a notebook: without the hidden cells of the exercises, which know the answers."
    from execnb.shell import CaptureShell

    shell = CaptureShell(mpl_format=None)
    shell.run(f"import os; os.chdir({str(path.parent)!r})")
    exercising = False
    for cell in cells(path):
        exercising = exercising or "def check_exercise_1(" in cell.source
        if exercising and re.match(r"#\|\s*hide", cell.source):
            continue
        if cell.cell_type == "code" and not re.search(r"^#\|\s*eval:\s*false", cell.source, re.M):
            assert succeeds(shell, cell.source), f"{path.name}: {cell.source[:80]!r} fails"
    return shell


def succeeds(shell, source):
    "Whether the code runs, and does not end with a value that says something else than right."
    shell.run("_graded = None")
    shell.run(source)
    if shell.exc:
        return False
    said = shell.result
    return not (isinstance(said, str) and "check_exercise" in source) or said.lower().startswith(("right", "correct"))


@pytest.mark.full
@pytest.mark.timeout(600)
@every
def test_the_readers_way(path, monkeypatch):
    monkeypatch.setenv("LLMBUILDER_QUICK", "1")
    monkeypatch.setenv("LLMBUILDER_UI", "text")
    monkeypatch.chdir(path.parent)
    shell = run_notebook(path)
    for number, one in exercises(path).items():
        start = one["start"] or f"check_exercise_{number}(...)"
        assert not succeeds(shell, start), f"exercise {number}: the starting point passes: {start}"
        if f"check_exercise_{number}" in one["solution"]:
            assert succeeds(shell, one["solution"]), f"exercise {number}: the folded solution fails"
