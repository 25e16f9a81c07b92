"""The package as it is installed: names, versions, what importing it costs, what the wheel holds."""
import ast
import importlib.metadata
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

import llmbuilder as lb

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(p.stem for p in (ROOT / "llmbuilder").glob("[a-z]*.py"))
INI = ConfigParser(delimiters=["="])
INI.read(ROOT / "settings.ini", encoding="utf-8")


@pytest.mark.parametrize("name", lb.__all__)
def test_public_name_resolves(name):
    value = getattr(lb, name)
    assert value is getattr(sys.modules[f"llmbuilder.{lb._WHERE[name]}"], name)
    assert name in dir(lb)


def test_public_names_are_exported_by_their_modules():
    for module, names in lb._NAMES.items():
        tree = ast.parse((ROOT / "llmbuilder" / f"{module}.py").read_text(encoding="utf-8"))
        exported = next(
            ast.literal_eval(n.value)
            for n in tree.body
            if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"
        )
        assert set(names.split()) <= set(exported), module


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_thing"):
        lb.no_such_thing


def test_submodules_are_attributes(run):
    done = run("-c", "import llmbuilder as lb; print(lb.config.TrainingConfig().batch_size)")
    assert done.stdout == "16\n", done.stderr


def loaded(run, code):
    done = run("-c", f"{code}\nimport sys; print(*sorted(m for m in sys.modules if '.' not in m))")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


HEAVY = {"torch", "numpy", "matplotlib", "sentencepiece", "ipywidgets", "IPython", "tqdm"}


def test_import_is_cheap(run):
    assert not loaded(run, "import llmbuilder") & HEAVY


def test_config_needs_no_torch(run):
    assert not loaded(run, "from llmbuilder.config import Config; Config(); import llmbuilder; llmbuilder.load_config") & HEAVY


def test_help_needs_no_torch(run):
    code = "from llmbuilder.cli import main\ntry: main(['--help'])\nexcept SystemExit as e: assert not e.code"
    assert not loaded(run, code) & HEAVY


def test_training_needs_no_pictures(run):
    "matplotlib costs 27 MB, and a run that draws nothing does without."
    assert not loaded(run, "import llmbuilder.pipeline") & {"matplotlib", "IPython", "ipywidgets"}


def test_nothing_for_authors_is_imported(run):
    code = "import importlib\nfor m in %r: importlib.import_module('llmbuilder.' + m)" % [m for m in MODULES if m[0] != "_"]
    assert not loaded(run, code) & {"nbdev", "fastcore", "execnb", "transformers", "wandb", "pytest"}


def test_one_version():
    version = INI["DEFAULT"]["version"]
    assert lb.__version__ == version == importlib.metadata.version("llmbuilder")
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_authors_tools_are_extras_only():
    required = INI["DEFAULT"]["requirements"]
    assert not [t for t in ("nbdev", "fastcore", "jupyterlab", "transformers", "wandb", "pytest") if t in required]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "A wheel and an sdist of the working tree, built in a copy."
    copy = tmp_path_factory.mktemp("build") / "source tree"
    skip = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "output", "_*site*", "_proc", "_docs")
    shutil.copytree(ROOT, copy, ignore=skip)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", "."],
        cwd=copy, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,), (sdist,) = (copy / "dist").glob("*.whl"), (copy / "dist").glob("*.tar.gz")
    return wheel, sdist


@pytest.mark.slow
def test_wheel_holds_the_package_and_its_licence_alone(built):
    with zipfile.ZipFile(built[0]) as z:
        names = z.namelist()
    assert {f"llmbuilder/{m}.py" for m in MODULES} <= set(names)
    assert any(n.endswith("LICENSE") for n in names)
    notebooks = {p.relative_to(ROOT).as_posix() for p in (ROOT / "nbs").rglob("*.ipynb") if not p.parent.name.startswith(".")}
    assert {f"llmbuilder/{n}" for n in notebooks} == {n for n in names if n.endswith(".ipynb")}
    assert "llmbuilder/nbs/tinyshakespeare.txt" in names
    assert {n.split("/")[0].split("-")[0] for n in names} == {"llmbuilder"}
    assert not [n for n in names if "__pycache__" in n]


@pytest.mark.slow
def test_sdist_holds_the_sources(built):
    with tarfile.open(built[1]) as t:
        names = {n.partition("/")[2] for n in t.getnames()}
    assert {"LICENSE", "README.md", "settings.ini", "setup.py", "constraints.txt", "CHANGELOG.md"} <= names
    notebooks = {p.relative_to(ROOT).as_posix() for p in (ROOT / "nbs").glob("[0-9i]*.ipynb")}
    assert notebooks <= names and "tests/conftest.py" in names
    assert not [n for n in names if "__pycache__" in n or n.startswith(("Model_Test/output", "nbs/runs"))]
    assert not [n for n in names if n.endswith(".pt") and not n.startswith("tests/fixtures/")]


@pytest.mark.slow
def test_wheel_installs_and_imports_elsewhere(built, folder, run):
    target = folder / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(target), str(built[0])]
    subprocess.run(pip, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    done = run("-c", "import llmbuilder; print(llmbuilder.__file__)", env={"PYTHONPATH": str(target)})
    assert done.stdout.startswith(str(target)), done.stdout + done.stderr
    assert list((target / "bin").glob("llmbuilder*"))
    assert (target / "llmbuilder" / "py.typed").exists()  # type checkers read the package's hints
    assert "usage: llmbuilder" in run("-m", "llmbuilder", "--help", env={"PYTHONPATH": str(target)}).stdout
    done = run("-m", "llmbuilder", "lab", "the course", "--copy-only", env={"PYTHONPATH": str(target)})
    assert done.returncode == 0, done.stderr
    assert (folder / "the course" / "tutorials" / "watch_it_learn.ipynb").exists()


@pytest.mark.slow
def test_types_pass_mypy():
    pytest.importorskip("mypy")
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout[-3000:] + "see [tool.mypy] in pyproject.toml"
