"""Options, markers and fixtures for every test; what a test may rely on is said in each fixture's docstring."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

# before anything imports torch, matplotlib or a hub client
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="also run the tests marked full (minutes)")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--full"):
        return
    skip = pytest.mark.skip(reason="takes minutes: runs with --full")
    for item in items:
        if "full" in item.keywords:
            item.add_marker(skip)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    "In CI a browser test that skips itself has tested nothing: that is a failure (unless it waits for --full)."
    report = (yield).get_result()
    waits = "full" in item.keywords and not item.config.getoption("--full")
    if report.skipped and "browser" in item.keywords and os.environ.get("CI") and not waits:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"browser test skipped in CI: {reason}"


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory):
    "The user's cache folder is never touched: LLMBUILDER_CACHE is a fresh folder, for subprocesses too."
    before = os.environ.get("LLMBUILDER_CACHE")
    os.environ["LLMBUILDER_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield Path(os.environ["LLMBUILDER_CACHE"])
    if before is None:
        del os.environ["LLMBUILDER_CACHE"]
    else:
        os.environ["LLMBUILDER_CACHE"] = before


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "An empty folder whose name has spaces and an accent; it is the working folder while the test runs."
    path = tmp_path / "a folder with späces"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


WORDS = (
    "The harbour was quiet in the early morning, and the boats lay close together on the grey water. "
    "An old fisherman mended his nets and listened to the gulls above the wall. "
    "He had seen the harbour in every weather, and he knew that a quiet morning was often a promise of wind. "
    "When the wind came, the boats moved against the wall, and the fisherman counted the ropes once more.\n"
)


@pytest.fixture(scope="session")
def text():
    "About 300 words of prose, one paragraph per line."
    return "".join(WORDS.replace("fisherman", who) for who in ("fisherman", "sailor", "keeper", "pilot"))


@pytest.fixture
def small_text(folder, text):
    "training_data.txt with about 300 words, in a folder with spaces in its name (the working folder)."
    path = folder / "training_data.txt"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def run(folder):
    """run("-c", code) or run("-m", "llmbuilder", ...): Python in a process of its own, in `folder`; returns the finished
    process with .returncode, .stdout and .stderr as text. `env` adds variables, `cwd` names another folder."""

    def _run(*args, cwd=folder, env=None, timeout=240, input=None):
        full = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", **(env or {})}
        stdin = {"input": input} if input is not None else {"stdin": subprocess.DEVNULL}
        return subprocess.run(
            [sys.executable, *map(str, args)],
            cwd=cwd, env=full, timeout=timeout, text=True, encoding="utf-8", capture_output=True, **stdin,
        )

    return _run


@pytest.fixture
def cli(run):
    "cli('train', 'model', ...): the llmbuilder command in a process of its own, in `folder`."
    return lambda *args, **kw: run("-m", "llmbuilder", *args, **kw)


@pytest.fixture(scope="session")
def chromium():
    "Path of a Chromium; skips where there is none (which fails in CI for tests marked browser)."
    names = [os.environ.get("LLMBUILDER_CHROMIUM"), "/usr/bin/chromium", "chromium", "chromium-browser", "google-chrome"]
    for name in names:
        if name and (path := shutil.which(name)):
            return path
    pytest.skip("no Chromium on this machine")
