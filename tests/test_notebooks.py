"""What every committed notebook must look like. `nbdev_test` runs them; nothing is run here."""
import ast
import codecs
import re
import statistics
import subprocess
import sys
from pathlib import Path

sys.modules.setdefault("rfc3987_syntax", None)  # jsonschema does without it; importing it costs 4 s
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(
    p for p in (ROOT / "nbs").rglob("*.ipynb") if not re.search(r"/[._]", p.relative_to(ROOT).as_posix())
)
EXPORTED = [p for p in NOTEBOOKS if re.match(r"\d\d_", p.name) and p.parent.name == "nbs"]
FETCHES = re.compile(r"\burlopen\(|\burlretrieve\(|\brequests\.(get|post)\(|\bwget\b|\bcurl\b|\bhf_hub_download\(")


def rel(path):
    return path.relative_to(ROOT / "nbs").as_posix()


every = pytest.mark.parametrize("path", NOTEBOOKS, ids=rel)
exported = pytest.mark.parametrize("path", EXPORTED, ids=rel)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(nb):
    return [c for c in nb.cells if c.cell_type == "code"]


def directives(cell):
    return [line.removeprefix("#|").strip() for line in cell.source.splitlines() if line.startswith("#|")]


def body(cell):
    "The lines of a cell that somebody has to read: no directives, no blank lines."
    return [line for line in cell.source.splitlines() if line.strip() and not line.startswith("#|")]


def is_exported(cell):
    return any(re.match(r"exports?\b", d) for d in directives(cell))


def test_there_are_notebooks():
    assert NOTEBOOKS


@every
def test_valid_json_and_stored_clean(path):
    nb = read(path)
    nbformat.validate(nb)
    assert set(nb.metadata) <= {"kernelspec"}, "run nbdev_clean"
    for c in nb.cells:
        assert not c.metadata, f"cell {c.id} has metadata: run nbdev_clean"
    ids = [c.id for c in nb.cells]
    assert len(ids) == len(set(ids))
    assert path.stat().st_size < 1_500_000, "a notebook this large is a burden to clone: smaller pictures"


@every
def test_opens_with_title_and_subtitle(path):
    first = read(path).cells[0]
    assert first.cell_type == "markdown"
    lines = first.source.splitlines()
    assert re.match(r"# \S", lines[0])
    assert any(line.startswith("> ") for line in lines[1:]), "a > subtitle under the title"


@every
def test_outputs_are_kept_and_quiet(path):
    outputs = [(c, o) for c in code_cells(read(path)) for o in c.outputs]
    assert outputs, "execute the notebook and keep its outputs"
    for c, o in outputs:
        where = f"{path.name}, cell starting {c.source[:60]!r}"
        assert o.output_type != "error", f"{where}: stored with an error"
        assert not (o.output_type == "stream" and o.name == "stderr"), f"{where}: prints to stderr: {o.text[:200]}"
        assert "application/vnd.jupyter.widget-view+json" not in o.get("data", {}), f"{where}: live widget stored"


@every
def test_nothing_is_fetched(path):
    nb = read(path)
    for c in nb.cells:
        if c.cell_type == "code":
            assert "eval: false" in directives(c) or not FETCHES.search(c.source), c.source[:200]
        else:
            assert not re.search(r"!\[[^]]*\]\(https?:|<img[^>]+src=.https?:", c.source), "a picture on another host"


@every
def test_lines_are_at_most_120_wide(path):
    wide = [line for c in code_cells(read(path)) for line in c.source.splitlines() if len(line) > 120]
    assert not wide


@every
def test_links_lead_somewhere(path):
    for c in read(path).cells:
        if c.cell_type != "markdown":
            continue
        prose = re.sub(r"```.*?```|`[^`\n]*`", "", c.source, flags=re.S)
        for target in re.findall(r"\]\(([^)\s]+)\)", prose):
            if not re.match(r"[a-z]+:|#", target):
                assert (path.parent / target.partition("#")[0]).exists(), f"{path.name}: {target}"


@exported
def test_exports_the_module_of_its_name(path):
    module = re.sub(r"^\d\d_", "", path.stem)
    exps = [d for c in code_cells(read(path)) for d in directives(c) if d.startswith("default_exp")]
    assert exps == [f"default_exp {module}"]
    assert (ROOT / "llmbuilder" / f"{module}.py").exists()


@exported
def test_imports_only_what_comes_earlier_in_the_course(path):
    order = [re.sub(r"^\d\d_", "", p.stem) for p in EXPORTED]
    module = re.sub(r"^\d\d_", "", path.stem)
    tree = ast.parse((ROOT / "llmbuilder" / f"{module}.py").read_text(encoding="utf-8"))
    used = {
        name.split(".")[1]
        for n in ast.walk(tree)
        if isinstance(n, (ast.Import, ast.ImportFrom))
        for name in ([n.module or ""] if isinstance(n, ast.ImportFrom) else [a.name for a in n.names])
        if name.startswith("llmbuilder.")
    }
    later = [m for m in used if m in order and order.index(m) >= order.index(module)]
    assert not later
    top = {n.split(".")[0] for n in re.findall(r"^\s*(?:from|import)\s+([\w.]+)", ast.unparse(tree), re.M)}
    assert not top & {"nbdev", "fastcore", "transformers", "accelerate", "datasets"}


@exported
def test_cells_are_short(path):
    cells = [c for c in code_cells(read(path)) if body(c) and "hide" not in directives(c)]
    assert statistics.median(len(body(c)) for c in cells) <= 6
    for c in cells:
        if is_exported(c):
            limit = 60 if re.search(r"^class ", c.source, re.M) else 25
            assert len(body(c)) < limit, f"{len(body(c))} lines: {body(c)[0]}"


@exported
def test_three_to_five_graded_exercises_with_solutions(path):
    source = "\n".join(c.source for c in read(path).cells)
    checks = set(re.findall(r"def check_exercise_(\d+)\(", source))
    assert 3 <= len(checks) <= 5
    assert source.count("<details>") >= len(checks), "a folded solution for each exercise"


def test_no_package_registry_is_named():
    "Which registry a reader uses is their machine's setting, not ours."
    hosts = [codecs.decode(h, "rot13") for h in ("clcv.bet", "clgubaubfgrq.bet", "qbjaybnq.clgbepu", "nanpbaqn.bet")]
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True
    )
    if files.returncode:
        pytest.skip("not a git checkout")
    for name in files.stdout.decode().split("\0"):
        path = ROOT / name
        if name and path.is_file():
            data = path.read_bytes().lower()
            assert not [h for h in hosts if h.encode() in data], name


def test_the_map_has_every_lesson_and_the_index_links_each():
    "python tools/course_map.py draws the picture; its --links are the row below it in nbs/index.ipynb."
    sys.path.insert(0, str(ROOT / "tools"))
    import course_map

    assert {box[0] for box in course_map.there()} == {p.stem for p in EXPORTED}, "a box for each lesson: BOXES"
    source = "\n".join(c.source for c in read(ROOT / "nbs" / "index.ipynb").cells)
    missing = [link for link in course_map.links().split(" · ") if link not in source]
    assert not missing, "put the output of python tools/course_map.py --links below the map"
    assert "](course_map.png)" in source and (ROOT / "nbs" / "course_map.png").stat().st_size < 200_000


@every
def test_every_tutorial_is_linked_in_the_index(path):
    if path.parent.name == "tutorials":
        source = "\n".join(c.source for c in read(ROOT / "nbs" / "index.ipynb").cells)
        assert f"](tutorials/{path.name})" in source
