"""README.md and the pages of the web site from the notebooks: nbdev's processors, then nbconvert; no Quarto.

    python tools/docs.py            README.md, docs/images and _site_src (then: mkdocs build)
    python tools/docs.py --readme   README.md and docs/images alone
"""
import ast
import html
import io
import os
import re
import shutil
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "_site_src"
IMAGES = ROOT / "docs" / "images"
ATTRS = re.compile(r"\{target=[^}]*\}")
LINK = re.compile(r"(\]\()([^)\s]+)(\))|(<img[^>]*?\bsrc=\")([^\"]+)(\")")
CSS = """/* figures are drawn on white: they keep it in the dark theme */
[data-md-color-scheme="slate"] .md-typeset img:not(.twemoji) { background: #fff; border-radius: 4px; }
.md-grid { max-width: 70rem; }
.md-typeset pre > code { font-size: .66rem; }
.md-typeset code a { color: var(--md-typeset-a-color); }
"""
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


def comments(source):
    "The trailing comment of each line, by line number."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ").strip() for t in tokens if t.type == tokenize.COMMENT}


def escaped(text):
    "Text for a cell of a Markdown table; what stands in backticks stays as it is."
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part.replace("|", "&#124;") if i % 2 else re.sub(r"([<|*_])", r"\\\1", part) for i, part in enumerate(parts))


def code(text, homes):
    "A type or value as code, each class in it a link to where it is explained."
    link = lambda m: f'<a href="{homes[m[0]]}.html#{m[0].lower()}">{m[0]}</a>' if m[0] in homes else m[0]
    safe = html.escape(text, quote=False).replace("|", "&#124;").replace("*", "&#42;").replace("_", "&#95;")
    return f"<code>{re.sub(r'[A-Za-z]+', link, safe)}</code>" if text else ""


def table(head, rows, homes):
    "A Markdown table of (name, type, default, meaning)."
    lines = [f"| {code(n, {})} | {code(t, homes)} | {code(d, {})} | {escaped(m)} |" for n, t, d, m in rows]
    return "\n".join([f"| {head} | type | default | meaning |", "|---|---|---|---|", *lines]) + "\n\n" if lines else ""


def parameters(node, said):
    "Name, type, default and docment of each parameter of a function."
    a = node.args
    plain = [*a.posonlyargs, *a.args]
    defaults = [None] * (len(plain) - len(a.defaults)) + a.defaults
    pairs = [*zip(plain, defaults), *zip(a.kwonlyargs, a.kw_defaults)]
    pairs += [(arg, None) for arg in (a.vararg, a.kwarg) if arg]
    stars = {a.vararg: "*", a.kwarg: "**"}
    for arg, default in pairs:
        if arg.arg not in ("self", "cls"):
            kind = ast.unparse(arg.annotation) if arg.annotation else ""
            name = stars.get(arg, "") + arg.arg
            yield name, kind, ast.unparse(default) if default else "", said.get(arg.lineno, "")


def fields(node, said):
    "Name, type, default and docment of each field of a dataclass."
    for n in node.body:
        if isinstance(n, ast.AnnAssign) and not n.target.id.startswith("_") and "ClassVar" not in ast.unparse(n.annotation):
            default = ast.unparse(n.value) if n.value else ""
            yield n.target.id, ast.unparse(n.annotation), "" if "field(" in default else default, said.get(n.lineno, "")


def function(node, said, homes, level, prefix=""):
    "A function or method: signature, what it does, its parameters, what it returns."
    is_property = any(ast.unparse(d).endswith("property") for d in node.decorator_list)
    names = ", ".join(name for name, *_ in parameters(node, said))
    title = f"{'#' * level} {prefix}{node.name}" + ("" if is_property else f"({names})")
    anchor = f" {{#{(prefix + node.name).lower()}}}\n\n"
    text = title.replace("*", "\\*").replace("_", "\\_") + anchor + escaped(ast.get_docstring(node) or "") + "\n\n"
    text += table("parameter", parameters(node, said), homes)
    if node.returns and (kind := ast.unparse(node.returns)) != "None":
        why = next((said[i] for i in range(node.returns.lineno, max(node.body[0].lineno, node.returns.lineno + 1)) if i in said), "")
        text += f"Returns {code(kind, homes)}" + (f": {escaped(why)}" if why else "") + "\n\n"
    return text


def klass(node, said, homes):
    "A class: what it is, its fields or the parameters that make one, its methods."
    bases = ", ".join(ast.unparse(b) for b in node.bases)
    text = f"## {node.name}" + (f"({bases})" if bases else "").replace("_", "\\_") + f" {{#{node.name.lower()}}}\n\n"
    text += escaped(ast.get_docstring(node) or "") + "\n\n"
    if any("dataclass" in ast.unparse(d) for d in node.decorator_list):
        text += table("field", fields(node, said), homes)
    for n in node.body:
        if isinstance(n, ast.FunctionDef) and n.name == "__init__":
            text += table("parameter", parameters(n, said), homes)
        elif isinstance(n, ast.FunctionDef) and not n.name.startswith("_"):
            text += function(n, said, homes, 3, node.name + ".")
    return text


def public(path):
    "The functions and classes of a module that it exports, by name, and its docstring."
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = next(ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "__all__")
    found = {n.name: n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name in names}
    return found, ast.get_docstring(tree) or ""


def api_page(path, lesson, homes):
    "The public names of a module, from its docments."
    said, (found, what) = comments(path.read_text(encoding="utf-8")), public(path)
    text = f"# llmbuilder.{path.stem}\n\n{what}. Explained in [{lesson}](../{lesson}.md).\n\n"
    text += " · ".join(f"[{escaped(name)}](#{name.lower()})" for name in found) + "\n\n"
    for node in found.values():
        text += klass(node, said, homes) if isinstance(node, ast.ClassDef) else function(node, said, homes, 2)
    return text


def api():
    "A page for each module, and one that lists them; returns their names in the order of the course."
    names = [page_name(p) for p in notebooks() if (ROOT / "llmbuilder" / f"{page_name(p)}.py").exists()]
    files = {name: ROOT / "llmbuilder" / f"{name}.py" for name in names}
    classes = {name: public(path)[0] for name, path in files.items()}
    homes = {c: name for name, found in classes.items() for c, node in found.items() if isinstance(node, ast.ClassDef)}
    (SITE / "api").mkdir(parents=True, exist_ok=True)
    for name, path in files.items():
        (SITE / "api" / f"{name}.md").write_text(api_page(path, name, homes), encoding="utf-8")
    lines = [f"| [llmbuilder.{name}]({name}.md) | {escaped(public(path)[1])} |" for name, path in files.items()]
    head = "# Reference\n\nEvery public name, from the comments beside each parameter.\n\n| module | |\n|---|---|\n"
    (SITE / "api" / "index.md").write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    return names


def page_head(path, cfg):
    "Links above a lesson: the notebook in Colab and at its source, the module's reference."
    rel, name = path.relative_to(ROOT).as_posix(), page_name(path)
    where = f"{cfg.user}/{cfg.repo}/blob/{cfg.branch}/{rel}"
    links = [f"[Open in Colab](https://colab.research.google.com/github/{where})", f"[Notebook](https://github.com/{where})"]
    if (ROOT / "llmbuilder" / f"{name}.py").exists():
        links.append(f"[Reference](api/{name}.md)")
    return " · ".join(links)


def documents(cfg):
    "CONTRIBUTING, CHANGELOG and the texts of docs/ as pages."
    for path in [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]:
        def fix(target, path=path):
            file, _, anchor = target.partition("#")
            there = Path(os.path.normpath(path.parent / file))
            tail = "#" + anchor if anchor else ""
            if not is_local(target) or not file:
                return target
            if there.suffix == ".ipynb" and (ROOT / "nbs") in there.parents:
                return f"{page_name(there)}.md{tail}"
            if there.parent in (ROOT, ROOT / "docs") and there.suffix == ".md" and there.stem != "README":
                return f"{there.stem.lower()}.md{tail}"
            kind = "tree" if there.is_dir() else "blob"
            return f"{cfg.git_url}/{kind}/{cfg.branch}/{there.relative_to(ROOT).as_posix()}{tail}"

        text = relink(path.read_text(encoding="utf-8"), fix)
        (SITE / f"{path.stem.lower()}.md").write_text(text, encoding="utf-8")


def site():
    "One page per notebook in _site_src, links between them relative; the reference; CONTRIBUTING, CHANGELOG and docs/."
    from nbdev.config import get_config

    cfg = get_config()
    home = cfg.doc_host + cfg.doc_baseurl + "/"
    shutil.rmtree(SITE, ignore_errors=True)
    api()
    documents(cfg)
    (SITE / "site.css").write_text(CSS, encoding="utf-8")
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
            if there.parent in (ROOT, ROOT / "docs") and there.suffix == ".md" and there.stem != "README":
                return f"{up}{there.stem.lower()}.md{tail}"
            kind = "tree" if there.is_dir() else "blob"
            return f"{cfg.git_url}/{kind}/{cfg.branch}/{there.relative_to(ROOT).as_posix()}{tail}"

        md = re.sub(r"\[(`[^`\]]+`)\]\([^)\s]*#_[^)]*\)", r"\1", md)  # private names have no place to link to
        title, _, rest = relink(md, fix).partition("\n")
        out.write_text(f"{title}\n\n{page_head(path, cfg)}\n{rest}", encoding="utf-8")
    print("wrote", len(list(SITE.rglob("*.md"))), "pages to", SITE.name)


def on_config(config):
    "mkdocs calls this: the site's table of contents is the course's reading order."
    pages = [page_name(p) + ".md" for p in notebooks()]
    index, lessons = pages[0], [p for p in pages[1:] if "/" not in p]
    tutorials = [p for p in pages if "/" in p]
    modules = [f"api/{p}" for p in lessons if (SITE / "api" / p).exists()]
    texts = [f"{p.stem.lower()}.md" for p in sorted((ROOT / "docs").glob("*.md"))]
    about = [*texts, "contributing.md", "changelog.md"]
    config["nav"] = [{"Home": index}, {"Lessons": lessons}, {"Tutorials": tutorials},
                     {"Reference": ["api/index.md", *modules]}, {"Project": about}]
    return config


def main(*args):
    readme()
    if "--readme" not in args:
        site()


if __name__ == "__main__":
    main(*sys.argv[1:])
