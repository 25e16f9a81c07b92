"""A JupyterLab and a Chromium for the whole session; each test opens a notebook of its own in them."""
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SHOTS = Path(os.environ.get("LLMBUILDER_SHOTS", ROOT / "build" / "ui"))
IDLE = "() => window.jupyterapp?.shell.currentWidget?.context?.sessionContext?.session?.kernel?.status === 'idle'"
WAIT = 240_000  # generous: a shared machine may be slow


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Lab:
    "A JupyterLab server whose files are in `root`."

    def __init__(self, root: Path):
        self.root, self.port, self.token = root, free_port(), secrets.token_hex(16)
        settings = root / ".settings" / "@jupyterlab" / "apputils-extension"
        settings.mkdir(parents=True)
        (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
        folders = {"JUPYTER_CONFIG_DIR": ".config", "JUPYTERLAB_SETTINGS_DIR": ".settings",
                   "JUPYTERLAB_WORKSPACES_DIR": ".workspaces", "IPYTHONDIR": ".ipython"}  # fmt: skip
        env = {**os.environ, "PYTHONPATH": str(ROOT), "LLMBUILDER_UI": "widgets",
               **{name: str(root / folder) for name, folder in folders.items()}}  # fmt: skip
        options = ["--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={self.port}", "--ServerApp.port_retries=0",
                   f"--IdentityProvider.token={self.token}", f"--ServerApp.root_dir={root}", "--LabApp.expose_app_in_browser=True"]
        self.log = open(root / ".lab.log", "w")
        self.process = subprocess.Popen([sys.executable, "-m", "jupyter", "lab", *options], stdout=self.log,
                                        stderr=subprocess.STDOUT, env=env, start_new_session=True)
        self.url = f"http://127.0.0.1:{self.port}"
        self.wait_until_up()

    def wait_until_up(self):
        for _ in range(400):
            try:
                return urllib.request.urlopen(f"{self.url}/api?token={self.token}", timeout=2)
            except OSError:
                assert self.process.poll() is None, (self.root / ".lab.log").read_text()
                time.sleep(0.25)
        raise TimeoutError((self.root / ".lab.log").read_text())

    def close(self):
        for sign, patience in (signal.SIGINT, 1), (signal.SIGINT, 10), (signal.SIGKILL, 10):
            try:
                os.killpg(self.process.pid, sign)
                self.process.wait(patience)
                break
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        self.log.close()


class Notebook:
    "A notebook open in a page."

    def __init__(self, lab, page, name, cells):
        self.lab, self.page, self.path = lab, page, lab.root / f"{name}.ipynb"
        kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
        code = [{"cell_type": "code", "id": f"c{i}", "metadata": {}, "source": c, "outputs": [], "execution_count": None}
                for i, c in enumerate(cells)]  # fmt: skip
        self.path.write_text(json.dumps({"cells": code, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
        self.open()

    def open(self, reset=True):
        self.page.goto(f"{self.lab.url}/lab/tree/{self.path.name}?token={self.lab.token}{'&reset' if reset else ''}")
        self.page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=WAIT)
        self.page.wait_for_function(IDLE, timeout=WAIT)
        if reset:
            self.command("application:toggle-left-area")

    def command(self, name, **options):
        return self.page.evaluate("([n, o]) => window.jupyterapp.commands.execute(n, o)", [name, options])

    def run_all(self):
        "Run every cell and wait until the last one is done."
        self.command("notebook:run-all-cells")
        self.page.wait_for_function(IDLE, timeout=WAIT)

    def button(self, name):
        return self.page.get_by_role("button", name=name, exact=True)

    def shot(self, name, which="first", out=SHOTS):
        "A picture of the first or the last view; returns its file."
        out.mkdir(parents=True, exist_ok=True)
        view = self.page.locator(".jp-OutputArea-output .lb")
        self.page.wait_for_timeout(300)
        (view.first if which == "first" else view.last).screenshot(path=out / f"{name}.png")
        return out / f"{name}.png"

    def shots(self, name, which="first", out=SHOTS):
        "Pictures in the light and in the dark theme, and of a page 900 pixels wide; returns their files."
        size = self.page.viewport_size
        self.page.set_viewport_size({**size, "height": 2400})  # everything in view
        files = [self.shot(f"{name}_light", which, out)]
        self.theme("JupyterLab Dark")
        files.append(self.shot(f"{name}_dark", which, out))
        self.theme("JupyterLab Light")
        self.page.set_viewport_size({"width": 900, "height": 2400})
        files.append(self.shot(f"{name}_900px", which, out))
        self.page.set_viewport_size(size)
        return files

    def append(self, code):
        "Add a cell behind the last one."
        self.page.evaluate("""code => { const nb = window.jupyterapp.shell.currentWidget.content;
            nb.model.sharedModel.addCell({cell_type: 'code', source: code}); nb.activeCellIndex = nb.model.cells.length - 1; }""", code)

    def run_last(self):
        self.page.evaluate("""() => { const nb = window.jupyterapp.shell.currentWidget.content;
            nb.deselectAll(); nb.activeCellIndex = nb.model.cells.length - 1; }""")
        self.command("notebook:run-cell")

    def restart(self):
        "Restart the kernel, as from the menu."
        self.page.evaluate("() => window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel.restart()")
        self.page.wait_for_function(IDLE, timeout=WAIT)

    def theme(self, name):
        self.command("apputils:change-theme", theme=name)
        self.page.wait_for_timeout(600)

    def errors(self):
        "What was printed to stderr, and tracebacks."
        kinds = "application/vnd.jupyter.stderr", "application/vnd.jupyter.error"
        where = ", ".join(f".jp-OutputArea-output[data-mime-type='{kind}']" for kind in kinds)
        return self.page.locator(where).all_inner_texts()


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    server = Lab(tmp_path_factory.mktemp("lab"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def browser(chromium):
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        options = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        chrome = p.chromium.launch(executable_path=chromium, args=options)
        yield chrome
        chrome.close()


@pytest.fixture
def notebook(lab, browser, request):
    "notebook(name, cells, width=1300) opens a fresh notebook; a failing test leaves a screenshot."
    opened = []

    def _open(name, cells, width=1300, height=1100):
        context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        opened.append(Notebook(lab, page, name, cells))
        return opened[-1]

    yield _open
    for nb in opened:
        SHOTS.mkdir(parents=True, exist_ok=True)
        if request.node.stash.get("failed", False):
            nb.page.screenshot(path=SHOTS / f"failed_{request.node.name}.png", full_page=True)
        try:
            nb.command("kernelmenu:shutdown")
            nb.page.wait_for_timeout(300)
        except Exception:
            pass
        nb.page.context.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.when == "call" and report.failed:
        item.stash["failed"] = True
