"""The web site: built from the notebooks as CONTRIBUTING says, every link leads somewhere, nothing comes from another host."""
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent


class Page(HTMLParser):
    "Anchors and links of a page."

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loads = set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a[k] for k in ("id", "name") if a.get(k)}
        if tag == "a" and a.get("href"):
            self.links.append(a["href"])
        if a.get("src") or tag == "link" and a.get("rel") in ("stylesheet", "icon"):
            self.loads.append(a.get("src") or a["href"])


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "The site, built in a copy."
    copy = tmp_path_factory.mktemp("docs") / "a copy"
    copy.mkdir()
    parts = "settings.ini README.md CONTRIBUTING.md CHANGELOG.md LICENSE mkdocs.yml docs llmbuilder nbs tools Model_Test".split()
    tar = subprocess.run(["tar", "-cf", "-", "--exclude=*.pt", "--exclude=runs", "--exclude=output", *parts], cwd=ROOT, capture_output=True)
    subprocess.run(["tar", "-xf", "-"], cwd=copy, input=tar.stdout, check=True)
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    for command in ["tools/docs.py"], ["-m", "mkdocs", "build", "--strict", "-q"]:
        done = subprocess.run([sys.executable, *command], cwd=copy, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return copy / "_docs"


@pytest.fixture(scope="module")
def pages(built):
    return {p: Page(p) for p in built.rglob("*.html")}


def test_every_notebook_and_module_has_a_page(built):
    for path in (ROOT / "nbs").glob("[0-9]*.ipynb"):
        name = re.sub(r"^\d+_", "", path.stem)
        assert (built / f"{name}.html").exists() and (built / "api" / f"{name}.html").exists(), name
    for path in (ROOT / "nbs" / "tutorials").glob("*.ipynb"):
        assert (built / "tutorials" / f"{path.stem}.html").exists()


def test_every_link_leads_somewhere(built, pages):
    broken = []
    for path, page in pages.items():
        for link in page.links:
            if re.match(r"[a-z]+:", link) or path.name == "404.html":
                continue
            file, _, anchor = link.partition("#")
            there = (path.parent / file).resolve() if file else path
            there = there / "index.html" if there.is_dir() else there
            if not there.exists() or anchor and there in pages and anchor not in pages[there].ids:
                broken.append(f"{path.relative_to(built)}: {link}")
    assert not broken


def test_links_into_the_repository_exist(pages):
    home = "https://github.com/llmbuilder/llmbuilder/"
    found = {link for page in pages.values() for link in page.links if link.startswith((home + "blob/main/", home + "tree/main/"))}
    assert found
    missing = [link for link in found if not (ROOT / link.split("/main/", 1)[1].partition("#")[0]).exists()]
    assert not missing


def test_pictures_scripts_and_styles_are_local(pages):
    for path, page in pages.items():
        if path.name != "404.html":
            away = [s for s in page.loads if re.match(r"https?:|//", s)]
            gone = [s for s in page.loads if not s.startswith("data:") and s not in away and not (path.parent / s.partition("?")[0]).exists()]
            assert not away and not gone, path.name


def test_the_search_knows_lessons_and_reference(built):
    docs = json.loads((built / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    hits = {d["location"].partition("#")[0] for d in docs if "cloze" in (d["title"] + d["text"]).lower()}
    assert {"evaluation.html", "api/evaluation.html"} <= hits


def test_reference_shows_what_a_docment_says(built):
    page = (built / "api" / "evaluation.html").read_text(encoding="utf-8")
    assert "new targets in a window; None: block_size" in page and 'id="evaluate_files"' in page
    head = (built / "evaluation.html").read_text(encoding="utf-8")
    assert "colab.research.google.com/github/llmbuilder/llmbuilder/blob/main/nbs/09_evaluation.ipynb" in head


def test_every_notebook_installs_itself_in_colab():
    for path in (ROOT / "nbs").rglob("*.ipynb"):
        if not re.search(r"/[._]", path.relative_to(ROOT).as_posix()):
            code = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
            installs = ["git+https://github.com/llmbuilder/llmbuilder" in "".join(c["source"]) for c in code]
            assert sum(installs) == 1 and installs[0], f"{path.name}: tools/nb.py put adds the cell for Colab"
