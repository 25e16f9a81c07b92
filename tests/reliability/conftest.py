"""Fixtures of the reliability tests, and the report that a full run leaves: FULL.md."""
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from faults import Nursery  # noqa: E402

FACTS = {}  # what a test measured: {name: sentence}


@pytest.fixture(scope="session")
def _nursery(tmp_path_factory):
    nursery = Nursery(tmp_path_factory.mktemp("children"))
    yield nursery
    nursery.close()


@pytest.fixture
def nursery(_nursery):
    "Starts processes that can be killed; whatever is left of them when the test ends is."
    yield _nursery
    _nursery.end_children()


@pytest.fixture
def amount(request):
    "amount(quick, full): how many repetitions."
    return lambda quick, full: full if request.config.getoption("--full") else quick


@pytest.fixture
def fp16(monkeypatch):
    "A CPU computes fp16 slowly, so runs refuse it there: here they don't. Gradients that overflow and the GradScaler are real."
    from llmbuilder import training

    monkeypatch.setattr(training, "resolve_precision", lambda wanted, device: ("fp16", None))


@pytest.fixture
def measured():
    "measured(name, sentence): for FULL.md and for pytest -s."

    def note(name, sentence):
        FACTS[name] = sentence
        print(f"{name}: {sentence}")

    return note


@pytest.fixture
def mount(tmp_path):
    "mount(megabytes=2, read_only=False): a small disk of its own. Needs root; without, the test is skipped."
    mounted = []

    def make(megabytes=2, read_only=False, name="disk"):
        path = tmp_path / name
        path.mkdir()
        options = f"size={megabytes}m" + (",ro" if read_only else "")
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
        if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a small disk needs root (and a container that allows it)")
        mounted.append(path)
        return path

    yield make
    for path in mounted:
        subprocess.run(["umount", "-l", str(path)], check=True)


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    "A full run writes FULL.md: what was measured, when, where, and whether everything passed."
    if not config.getoption("--full") or not FACTS:
        return
    import torch

    reports = [r for kind in ("passed", "failed", "skipped") for r in terminalreporter.stats.get(kind, []) if "reliability" in r.nodeid]
    counts = {kind: len({r.nodeid for r in terminalreporter.stats.get(kind, []) if "reliability" in r.nodeid})
              for kind in ("passed", "failed", "skipped")}
    if counts["passed"] + counts["failed"] < 100:
        return  # a part of the tests is no full run
    seconds = sum(r.duration for r in reports)
    lines = [
        "# The last full run",
        "",
        "Written by `pytest tests/reliability --full`; not edited by hand.",
        "",
        f"{time.strftime('%Y-%m-%d %H:%M %Z')}, {platform.system()} {platform.release()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, {os.cpu_count()} cores, {'root' if os.geteuid() == 0 else 'not root'}",
        "",
        f"{counts['passed']} tests passed, {counts['failed']} failed, {counts['skipped']} skipped; {seconds:.0f} s.",
        "",
        "| what | measured |",
        "|---|---|",
        *(f"| {name} | {sentence} |" for name, sentence in sorted(FACTS.items())),
        "",
    ]
    if counts["skipped"]:
        why = sorted({(r.nodeid, r.longrepr[2]) for r in terminalreporter.stats["skipped"] if "reliability" in r.nodeid})
        lines += ["Skipped:", "", *(f"- `{nodeid.split('::')[-1]}`: {reason}" for nodeid, reason in why), ""]
    (HERE / "FULL.md").write_text("\n".join(lines), encoding="utf-8")
