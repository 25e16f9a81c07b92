"""README.md and the pages of the web site from the notebooks: nbdev's processors, then nbconvert; no Quarto.

    python tools/docs.py            README.md, docs/images and _site_src (then: mkdocs build)
    python tools/docs.py --readme   README.md and docs/images alone
"""
import ast
import os
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "_site_src"
IMAGES = ROOT / "docs" / "images"
ATTRS = re.compile(r"\{target=[^}]*\}")
LINK = re.compile(r"(\]\()([^)\s]+)(\))|(<img[^>]*?\bsrc=\")([^\"]+)(\")")
FENCE = re.compile(r"(^```.*?^```$)", re.M | re.S)


def notebooks():
    "Every notebook of the course in reading order: the index, the numbered ones, the tutorials."
    found = [p for p in (ROOT / "nbs").rglob("*.ipynb") if not re.search(r"/[._]", p.relative_to(ROOT).as_posix())]
    return sorted(found, key=lambda p: (p.stem != "index", len(p.parts), p.as_posix()))


def page_name(path):
    "Where a notebook's page lies in the site: nbs/03_model.ipynb -> model, nbs/tutorials/01_x.ipynb -> tutorials/x."
    rel = Path(path).relative_to(ROOT / "nbs")
    return rel.with_name(re.sub(r"^\d+[a-z]?_", "", rel.stem)).as_posix()


def symbols(source):
    "The anchors that nbdev links to for what a cell defines: name, and class.method."
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node.name.lower()
            if isinstance(node, ast.ClassDef):
                yield from (f"{node.name}.{n.name}".lower() for n in node.body if isinstance(n, ast.FunctionDef))


def merged(outputs):
    "Outputs without what went to stderr, neighbouring pieces of printed text as one."
    result = []
    for o in outputs:
        if o.output_type == "stream" and o.name == "stderr":
            continue
        if o.output_type == "stream" and result and result[-1].output_type == "stream":
            result[-1].text += o.text
        else:
            result.append(o)
    return result


def as_read(nb):
    """The cells of a page: the lesson as in the notebook, exported code included (nbdev's own pages would show signatures
    instead); without hidden cells, `#|` lines and anything on stderr; an anchor before what is linked to."""
    from nbformat.v4 import new_markdown_cell

    keep = []
    for c in nb.cells:
        if c.cell_type == "code":
            lines = c.source.splitlines()
            opts = [line.removeprefix("#|").strip() for line in lines if line.startswith("#|")]
            if any(re.match(r"hide\b|default_exp|include: false", o) for o in opts):
                continue
            echo = not any("echo: false" in o for o in opts)
            c.source = "\n".join(line for line in lines if not line.startswith("#|")).strip("\n") if echo else ""
            c.outputs = merged(c.outputs)
            if not c.source and not c.outputs:
                continue
            if any(re.match(r"exports?\b", o) for o in opts):
                if anchors := "".join(f'<a id="{name}"></a>' for name in symbols(c.source)):
                    keep.append(new_markdown_cell(anchors))
        keep.append(c)
    nb.cells = keep
    return nb


def processors():
    "nbdev's processors that a page needs: hidden lines, links from `names` to the pages that define them."
    from nbdev import processors as p

    return [p.populate_language, p.strip_ansi, p.hide_line, p.add_links, p.strip_hidden_metadata]


def markdown(path):
    "One notebook as (markdown, {image name: bytes}); links are still those of the notebook."
    sys.modules.setdefault("rfc3987_syntax", None)  # jsonschema does without it; importing it costs 4 s
    import nbformat
    from execnb.nbio import nb2str
    from nbconvert import MarkdownExporter
    from nbdev.process import NBProcessor

    raw = NBProcessor(path, procs=processors(), rm_directives=False, process=True).nb
    nb = as_read(nbformat.reads(nb2str(raw), 4))
    nb.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    md, res = MarkdownExporter(exclude_input_prompt=True).from_notebook_node(nb)
    md = re.sub(r"\n*```python\n+```\n", "\n", ATTRS.sub("", md)).strip()
    md = "\n".join(line.rstrip() for line in md.splitlines()) + "\n"
    md = re.sub(r"\n{2,}!\[(?:png|svg)\]\(([^)]+)\)\n{2,}", r"\n\n![figure](\1)\n\n", md)
    return md, res["outputs"]


def relink(md, fix):
    "Apply `fix` to the target of every link and image that stands outside code blocks."
    def one(m):
        a, target, b = m.groups()[:3] if m[1] else m.groups()[3:]
        new = fix(target)
        return f"{a}{new}{b}"

    parts = FENCE.split(md)
    return "".join(p if i % 2 else LINK.sub(one, p) for i, p in enumerate(parts))


def is_local(target):
    return not re.match(r"[a-z]+:|#|/", target)


def readme():
    "README.md from nbs/index.ipynb, its pictures in docs/images."
    from nbdev.config import get_config

    cfg = get_config()
    path = ROOT / "nbs" / cfg.readme_nb
    if not path.exists():
        print("no", path.relative_to(ROOT), "yet: README.md stays as it is")
        return
    md, files = markdown(path)
    for old in IMAGES.glob(f"{path.stem}_*"):
        old.unlink()
    names = {old: f"docs/images/{path.stem}_{i}{Path(old).suffix}" for i, old in enumerate(files)}
    for old, data in files.items():
        IMAGES.mkdir(parents=True, exist_ok=True)
        (ROOT / names[old]).write_bytes(data)
    site = cfg.doc_host + cfg.doc_baseurl

    def fix(target):
        if target in names:
            return names[target]
        return os.path.normpath("nbs/" + target).replace(os.sep, "/") if is_local(target) else target

    # nbdev links `names` to the site's pages; the README stands alone
    md = re.sub(r"\[(`[^`\]]+`)\]\(" + re.escape(site) + r"[^)]*\)", r"\1", md)
    (ROOT / "README.md").write_text(relink(md, fix), encoding="utf-8")


def site():
    "One page per notebook in _site_src, links between them relative."
    from nbdev.config import get_config

    cfg = get_config()
    home = cfg.doc_host + cfg.doc_baseurl + "/"
    shutil.rmtree(SITE, ignore_errors=True)
    for path in notebooks():
        md, files = markdown(path)
        name = page_name(path)
        up = "../" * name.count("/")
        out = SITE / f"{name}.md"
        out.parent.mkdir(parents=True, exist_ok=True)
        names = {old: f"{out.stem}_{i}{Path(old).suffix}" for i, old in enumerate(files)}
        for old, data in files.items():
            (out.parent / names[old]).write_bytes(data)

        def fix(target, path=path, up=up, names=names, out=out):
            if target in names:
                return names[target]
            if target.startswith(home):  # a name that nbdev linked: page.html#anchor
                return up + target[len(home):].replace(".html", ".md")
            if not is_local(target):
                return target
            file, _, anchor = target.partition("#")
            there = Path(os.path.normpath(path.parent / file))
            tail = "#" + anchor if anchor else ""
            if there.suffix == ".ipynb" and (ROOT / "nbs") in there.parents:
                return f"{up}{page_name(there)}.md{tail}"
            if there.suffix in (".png", ".svg", ".jpg") and there.is_file():
                shutil.copy(there, out.parent / there.name)
                return there.name
            kind = "tree" if there.is_dir() else "blob"
            return f"{cfg.git_url}/{kind}/{cfg.branch}/{there.relative_to(ROOT).as_posix()}{tail}"

        md = re.sub(r"\[(`[^`\]]+`)\]\([^)\s]*#_[^)]*\)", r"\1", md)  # private names have no place to link to
        out.write_text(relink(md, fix), encoding="utf-8")
    print("wrote", len(list(SITE.rglob("*.md"))), "pages to", SITE.name)


def on_config(config):
    "mkdocs calls this: the site's table of contents is the course's reading order."
    pages = [page_name(p) + ".md" for p in notebooks()]
    lessons = [p for p in pages if "/" not in p]
    tutorials = [p for p in pages if "/" in p]
    config["nav"] = lessons + ([{"Tutorials": tutorials}] if tutorials else [])
    return config


def main(*args):
    readme()
    if "--readme" not in args:
        site()


if __name__ == "__main__":
    main(*sys.argv[1:])
