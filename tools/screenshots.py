"""The pictures of the four views in nbs/images: a real JupyterLab in Chromium, light, dark and on a page 900 pixels wide.

    python tools/screenshots.py [VIEW ...] [--out nbs/images] [--zoom 1.5]

VIEW is training, playground, tokenizer or attention; none named: all four. --zoom shows what a reader sees who enlarges the page.
"""
import argparse
import io
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from PIL import Image
from playwright.sync_api import sync_playwright

from tests.browser.common import SETUP, until
from tests.browser.conftest import WAIT, Lab, Notebook

MODEL = SETUP.replace("[:60_000]", "").replace("vocab_size=400", "vocab_size=800").replace("text, 32,", "text, 64,").replace(
    "max_seq_length=32", "max_seq_length=64") + """
import contextlib, os
sizes = dict(width=96, layers=3, heads=4)
if not Path("runs/first_try").exists():
    make_trainer("runs/first_try", 400, progress=False, **sizes).train()
"""
CELLS = {
    "training": 'make_trainer("runs/small", 600, width=32, progress=False).train()\n'
                'trainer = make_trainer("runs/shakespeare", 2000, **sizes)\nwatch(trainer, prompt="ROMEO:")',
    "playground": 'SamplingPlayground("runs/first_try", prompt="ROMEO:\\nWhat ", max_new_tokens=30, top_k=40, min_p=0.05, temperature=0.8)',
    "tokenizer": 'TokenizerExplorer({"of the model": tokenizer, "smaller": train_tokenizer(text, vocab_size=400)}, "First Citizen:\\nna\\u00efve caf\\u00e9 \\u263a, we proceed")',
    "attention": 'AttentionInspector("runs/first_try", text="First Citizen:\\nBefore we proceed any further, hear me speak.")',
}  # fmt: skip


def field(nb, label):
    box = nb.page.locator(".widget-hbox, .jupyter-widget-hbox").filter(has=nb.page.get_by_text(label, exact=True)).last
    return box.locator("input[type=number]")


def training(nb):
    "In the middle of a run whose learning rate was changed, beside an earlier one; paused, so that all parts agree."
    step = lambda: int(nb.page.locator(".lb-tile b").first.inner_text().split("/")[0].replace(",", ""))
    until(lambda: nb.page.locator(".lb-tile b").count() and step() > 700, "it trains", 400)
    nb.page.get_by_label("Learning rate ×").fill("0.3")
    nb.button("Apply").click()
    nb.page.get_by_label("Compare with").select_option("small")
    until(lambda: step() > 1100, "it trains on", 400)
    nb.button("Pause").click()
    nb.button("Resume").wait_for()
    nb.page.wait_for_timeout(5000)


def playground(nb):
    nb.button("Generate").click()
    nb.page.locator("code.lb-copy").first.wait_for()
    until(lambda: nb.page.locator(".lb-tokens").first.locator("button").count() > 30, "the text is there")
    for warmth in "0.3", "1.2":
        field(nb, "Temperature").fill(warmth)
        field(nb, "Temperature").press("Enter")
        nb.button("Add to comparison").click()
    nb.button("Generate side by side").click()
    until(lambda: nb.page.locator(".lb-columns .lb-text").count() == 2, "two settings side by side")
    field(nb, "Temperature").fill("0.8")
    field(nb, "Temperature").press("Enter")
    nb.page.locator(".lb-tokens").first.locator("button").nth(12).click()
    nb.page.get_by_text("instead of").wait_for()
    nb.page.wait_for_timeout(800)


def tokenizer(nb):
    nb.page.get_by_label("Small text").fill("the other other")
    field(nb, "Merge").fill("5")
    field(nb, "Merge").press("Enter")
    nb.page.get_by_text("step 5 of").wait_for()


def attention(nb):
    nb.page.locator(".lb-heads button").nth(5).click()
    field(nb, "Position").fill("8")
    field(nb, "Position").press("Enter")
    nb.page.get_by_text("(token 8) it looks at").wait_for()
    nb.page.get_by_label("Switch this head off").check()
    nb.page.get_by_role("columnheader", name="without").wait_for()
    nb.page.wait_for_timeout(800)


def shrink(path):
    "A quarter of the bytes: a page has few colours."
    out = io.BytesIO()
    Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    path.write_bytes(out.getvalue())


def take(lab, chrome, name, out, zoom):
    size = {"width": round(1300 / zoom), "height": 1100}
    page = chrome.new_context(viewport=size, device_scale_factor=zoom).new_page()
    page.set_default_timeout(WAIT)
    nb = Notebook(lab, page, name, [MODEL, CELLS[name]])
    nb.run_all()
    page.locator(".jp-OutputArea-output .lb").first.wait_for()
    globals()[name](nb)
    for path in nb.shots(name, out=out):
        shrink(path)
        print(path, f"{path.stat().st_size // 1000} KB")
    nb.command("kernelmenu:shutdown")
    page.wait_for_timeout(500)
    page.context.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("views", nargs="*", metavar="VIEW")
    parser.add_argument("--out", type=Path, default=ROOT / "nbs" / "images")
    parser.add_argument("--zoom", type=float, default=1.0)
    args = parser.parse_args()
    if unknown := set(args.views) - set(CELLS):
        parser.error(f"no view is called {', '.join(sorted(unknown))}: choose among {', '.join(CELLS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work, sync_playwright() as p:
        lab = Lab(Path(work))
        program = os.environ.get("LLMBUILDER_CHROMIUM", "/usr/bin/chromium")
        chrome = p.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"])
        try:
            for name in args.views or CELLS:
                take(lab, chrome, name, args.out, args.zoom)
        finally:
            chrome.close()
            lab.close()


main()
