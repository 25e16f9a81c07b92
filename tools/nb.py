"""Edit notebooks as text.
    python tools/nb.py get [NAME ...]   nbs/NAME.ipynb -> .nbtext/NAME.py (percent format, git-ignored)
    python tools/nb.py put [NAME ...]   .nbtext/NAME.py -> nbs/NAME.ipynb, ids and outputs kept; then nbdev_clean and nbdev_export
    python tools/nb.py run NAME ...     execute nbs/NAME.ipynb and keep its outputs, without the state of live widgets"""
import os
import subprocess
import sys
from pathlib import Path

sys.modules["rfc3987_syntax"] = None  # jsonschema does without it; importing it costs 4 s
import jupytext
import nbformat
from filelock import FileLock
from jupytext.combine import combine_inputs_with_outputs

ROOT = Path(__file__).resolve().parent.parent
FMT = {"extension": ".py", "format_name": "percent"}
KERNEL = {"display_name": "python3", "language": "python", "name": "python3"}


COLAB = """#| hide
#| eval: false
# In Colab this installs llmbuilder and copies the course's text beside the notebook; anywhere else it does nothing.
import sys
if "google.colab" in sys.modules:
    get_ipython().run_line_magic("pip", "install -q fastcore git+https://github.com/llmbuilder/llmbuilder")
    from llmbuilder.runs import copy_notebooks
    copy_notebooks(".")"""


def with_colab(doc):
    "The notebook with a cell that installs the package in Colab behind its title, where it has none of its own."
    if not any("install -q" in c.source and "git+https://github.com/llmbuilder" in c.source for c in doc.cells):
        doc.cells.insert(1, nbformat.v4.new_code_cell(COLAB))
    return doc


def get(nb, txt):
    doc = jupytext.read(nb)
    doc.metadata = {}
    txt.write_text(jupytext.writes(doc, FMT).split("# ---\n\n", 1)[-1], encoding="utf-8")


def put(nb, txt):
    new = jupytext.reads(txt.read_text(encoding="utf-8"), FMT)
    if nb.exists():
        old = jupytext.read(nb)
        new = combine_inputs_with_outputs(new, old, FMT)
        new.metadata = old.metadata
    else:
        new.metadata = {"kernelspec": KERNEL}
    jupytext.write(with_colab(new), nb, fmt="ipynb")


def run(name):
    nb = ROOT / f"nbs/{name}.ipynb"
    done = ROOT / f".nbtext/{name}.done.ipynb"
    done.parent.mkdir(parents=True, exist_ok=True)
    cmd = [sys.executable, "-m", "jupyter", "nbconvert", "--to", "notebook", "--execute", str(nb), "--output", str(done)]
    env = {"LLMBUILDER_UI": "text", **os.environ}
    env.pop("MPLBACKEND", None)  # with agg, as tests set it, no plot would be shown, and none kept
    subprocess.run(cmd, cwd=nb.parent, check=True, env=env, stdin=subprocess.DEVNULL)
    with LOCK:
        doc, old = jupytext.read(done), jupytext.read(nb)
        if [c.source for c in doc.cells] != [c.source for c in old.cells]:
            sys.exit(f"{nb.name} changed while it ran: run it again")
        doc.metadata.pop("widgets", None)  # nbdev_clean keeps it: 100 KB that change every time
        jupytext.write(doc, nb, fmt="ipynb")
        subprocess.run(["nbdev_clean", "--fname", str(nb)], cwd=ROOT, check=True)
    done.unlink()


def main(verb, *names):
    (ROOT / ".nbtext").mkdir(exist_ok=True)
    src = (ROOT / "nbs").rglob("*.ipynb") if verb == "get" else (ROOT / ".nbtext").rglob("*.py")
    base = ROOT / ("nbs" if verb == "get" else ".nbtext")
    for n in names or sorted(str(p.relative_to(base).with_suffix("")) for p in src):
        (ROOT / f".nbtext/{n}.py").parent.mkdir(parents=True, exist_ok=True)
        (ROOT / f"nbs/{n}.ipynb").parent.mkdir(parents=True, exist_ok=True)
        {"get": get, "put": put}[verb](ROOT / f"nbs/{n}.ipynb", ROOT / f".nbtext/{n}.py")
    if verb == "put":
        for cmd in "nbdev_clean", "nbdev_export":
            subprocess.run([cmd], cwd=ROOT, check=True)


LOCK = FileLock(str(ROOT / ".nbtext.lock"))  # two people, one tree: one export at a time
if sys.argv[1:2] == ["run"]:
    for one in sys.argv[2:]:
        run(one)
elif sys.argv[1:2] in (["get"], ["put"]):
    with LOCK:
        main(*sys.argv[1:])
else:
    sys.exit(__doc__)
