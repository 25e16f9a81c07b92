"""Playground, tokenizer explorer and attention inspector in a real browser, and the panel of a run that fails or is gone."""
import json

import pytest

from .common import SETUP, until

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(280)]


def number(nb, label):
    "Slider and number field of a setting."
    box = nb.page.locator(".widget-hbox, .jupyter-widget-hbox").filter(has=nb.page.get_by_text(label, exact=True)).last
    return box.locator(".noUi-handle"), box.locator("input[type=number]")


def by_key(nb, label, key, shown, typed):
    "Press an arrow key on a slider, then type into its field: each follows the other."
    handle, field = number(nb, label)
    handle.focus()
    handle.press(key)
    until(lambda: field.input_value() == shown, f"{label}: the field follows the slider ({field.input_value()}, not {shown})")
    field.fill(typed)
    field.press("Enter")
    at = lambda: float(handle.get_attribute("aria-valuenow"))  # to one decimal
    until(lambda: abs(at() - float(typed)) < 1e-6, f"{label}: the slider follows the field ({at()}, not {typed})")


def test_failure_and_kernel_restart(notebook, lab):
    cells = [
        SETUP + """
class Trip(Callback):
    def on_step(self, trainer, record):
        if record["step"] == 130:
            raise RuntimeError("tripped over <b>the cable</b>")
""",
        'make_trainer("runs/whole", 40, progress=False).train()\nNone',
        'trainer = make_trainer("runs/broken", 200, callbacks=[Trip()])\nwatch(trainer)',
        'try: trainer.wait()\nexcept RuntimeError as error: print("wait() raised:", error)',
    ]
    nb = notebook("broken", cells)
    nb.run_all()
    page = nb.page
    page.get_by_text("wait() raised: tripped over").wait_for()
    still = page.locator("img[alt*='Run broken']")  # the widgets give way to a page with alternative text
    until(lambda: still.count() == 1, "a saved notebook keeps the picture")
    alert = page.get_by_role("alert")
    alert.get_by_text("RuntimeError: tripped over <b>the cable</b>").first.wait_for()
    alert.get_by_text("Last good checkpoint").wait_for()
    assert not alert.locator("pre").is_visible(), "the traceback is folded"
    alert.get_by_text("Traceback", exact=True).click()
    alert.get_by_text("on_step").first.wait_for()
    page.wait_for_timeout(1500)
    assert alert.locator("pre").is_visible(), "an opened traceback stays open"
    until(lambda: "failed" in page.locator(".lb-pill").first.inner_text(), "the status says failed")
    assert json.loads((lab.root / "runs" / "broken" / "run.json").read_text())["status"] == "failed"

    # a run that is killed with its kernel
    nb.append('killed = make_trainer("runs/killed", 1_000_000)\nwatch(killed)')
    nb.run_last()
    until(lambda: (lab.root / "runs" / "killed" / "checkpoints" / "latest_checkpoint.pt").exists(), "it trains and saves")
    nb.restart()
    nb.append('from llmbuilder.dashboard import *\nshow_run("runs/killed")')
    nb.run_last()
    pill = page.locator(".lb-pill").last
    until(lambda: "interrupted at step" in pill.inner_text(), "a run whose process is gone says so")
    page.get_by_text('resume="auto"').first.wait_for()
    page.get_by_label("Compare with").last.select_option("whole")
    page.wait_for_timeout(2500)
    nb.shot("run_interrupted", which="last")


def test_playground(notebook, lab):
    cells = [
        SETUP + 'make_trainer("runs/play", 300, width=64, layers=2, heads=4, progress=False).train()\nNone',
        'play = SamplingPlayground("runs/play", prompt="First Citizen:\\n", max_new_tokens=24)\nplay',
        'from llmbuilder.generation import generate_text\n'
        'call = play.source.path("best")\n'
        'print("agrees:", generate_text(call, prompt="First Citizen:\\n", max_new_tokens=24, temperature=0, seed=1) == play.text_now)',
    ]
    nb = notebook("play", cells)
    nb.run_all()
    page = nb.page
    table = page.locator(".lb-filters")
    table.wait_for()
    by_key(nb, "Temperature", "ArrowRight", "0.85", "1.5")
    by_key(nb, "Top-k", "ArrowRight", "1", "40")
    by_key(nb, "Min-p", "ArrowRight", "0.01", "0.3")
    by_key(nb, "Top-p", "ArrowLeft", "0.99", "0.9")
    by_key(nb, "Repetition", "ArrowRight", "1.05", "1.2")
    by_key(nb, "Max tokens", "ArrowRight", "25", "30")
    until(lambda: "repetition penalty\n1.2" in table.inner_text() and "top-p\n0.9" in table.inner_text(), "the bars follow")
    handle, field = number(nb, "Temperature")
    field.fill("0")
    field.press("Enter")
    page.get_by_text("Temperature 0 is greedy").wait_for()
    until(lambda: "cut" in table.inner_text(), "what is cut says so")
    for label, value in ("Top-k", "0"), ("Top-p", "1"), ("Min-p", "0"), ("Repetition", "1"), ("Max tokens", "24"):
        field = number(nb, label)[1]
        field.fill(value)
        field.press("Enter")

    nb.button("Generate").click()
    page.locator("code.lb-copy").first.wait_for()
    tokens = page.locator(".lb-tokens").first.locator("button")
    until(lambda: tokens.count() > 24, "prompt and continuation as buttons")
    assert page.locator("code.lb-copy").nth(1).inner_text().startswith("llmbuilder generate --model")
    nb.run_last()
    page.get_by_text("agrees: True").wait_for()

    before = tokens.all_inner_texts()
    at = len(before) - 10
    tokens.nth(at).click()
    others = page.locator(".lb-tokens").nth(1).locator("button")
    until(lambda: others.count() >= 8, "alternatives are offered")
    choice = next(i for i in range(8) if others.nth(i).inner_text().split("\n")[0] != before[at].split("\n")[0])
    wanted = others.nth(choice).inner_text().split("\n")[0]
    others.nth(choice).press("Enter")
    until(lambda: tokens.count() > at and tokens.nth(at).inner_text().split("\n")[0] == wanted, "the text branches")
    assert [t.split("\n")[0] for t in tokens.all_inner_texts()[:at]] == [t.split("\n")[0] for t in before[:at]]

    for warmth in "0.3", "1.2":
        field = number(nb, "Temperature")[1]
        field.fill(warmth)
        field.press("Enter")
        nb.button("Add to comparison").click()
    nb.button("Generate side by side").click()
    until(lambda: page.locator(".lb-columns .lb-text").count() == 2, "two settings side by side")
    seed = page.get_by_label("Seed")
    before = seed.input_value()
    nb.button("New seed").click()
    until(lambda: seed.input_value() != before, "another seed")
    until(lambda: nb.button("Generate").is_enabled(), "the text is done")
    kept = seed.input_value()
    nb.button("Generate").click()
    until(lambda: f"seed={kept}" in page.locator("code.lb-copy").first.inner_text(), "a kept seed stays")
    until(lambda: nb.button("Generate").is_enabled(), "the text is done")
    page.get_by_label("Keep").uncheck()
    nb.button("Generate").click()
    until(lambda: seed.input_value() != kept, "without Keep each text gets a new seed")
    page.get_by_label("Keep").check()
    until(lambda: nb.button("Generate").is_enabled(), "the text is done")
    page.wait_for_timeout(500)
    nb.shots("playground")

    page.get_by_label("Model").first.select_option("latest")
    nb.button("Generate").click()
    until(lambda: "latest_checkpoint.pt" in page.locator("code.lb-copy").first.inner_text(), "the call names the other checkpoint")
    until(lambda: nb.button("Generate").is_enabled(), "the text is done")

    field = number(nb, "Max tokens")[1]
    field.fill("400")
    field.press("Enter")
    nb.button("Generate").click()
    until(lambda: nb.button("Stop").is_enabled(), "it generates")
    nb.button("Stop").click()
    until(lambda: nb.button("Generate").is_enabled(), "Stop ends it")
    assert nb.errors() == []


def test_explorer_and_inspector(notebook, lab):
    cells = [
        SETUP + 'make_trainer("runs/look", 200, width=64, layers=2, heads=4, progress=False).train()\nother = train_tokenizer(text, vocab_size=900)',
        'TokenizerExplorer({"small": tokenizer, "large": other}, "First Citizen:\\nSpeak")',
        'AttentionInspector("runs/look", text="First Citizen:\\nBefore we")',
    ]
    nb = notebook("look", cells)
    nb.run_all()
    page = nb.page
    tape = page.locator(".lb-tape")
    tape.first.wait_for()
    field = page.get_by_label("Text", exact=True).first
    field.fill("naïve <script>alert(1)</script>\t🙂 now")
    field.press("Tab")
    page.locator(".lb-group", has_text="ï").first.wait_for()
    assert "⇥" in tape.first.inner_text() and page.get_by_text("✓ decodes to the same text").count() == 2
    page.get_by_label("Beside it").select_option("none")
    until(lambda: page.get_by_text("✓ decodes to the same text").count() == 1, "one vocabulary alone")
    page.get_by_label("Beside it").select_option(index=2)
    by_key(nb, "Merge", "ArrowRight", "1", "2")
    page.get_by_text("step 2 of").wait_for()
    merge = number(nb, "Merge")[1]
    small = page.get_by_label("Small text")
    small.fill("the the the")
    small.press("Tab")
    page.get_by_text("step 0 of").wait_for()
    merge.fill("3")
    merge.press("Enter")
    page.get_by_text("step 3 of").wait_for()
    nb.shots("tokenizer")
    merge.fill("0")
    merge.press("Enter")
    page.get_by_text("step 0 of").wait_for()
    page.locator(".widget-play button").first.click()
    until(lambda: int(merge.input_value()) >= 2, "it plays")  # the last thing done here: a late tick may still move the field

    heads = page.locator(".lb-heads button")
    assert heads.count() == 8
    odds = page.locator(".lb-two table").last
    image = page.locator("img.lb-map")
    before = image.get_attribute("src")
    page.locator(".lb-tokens button").nth(5).click()
    page.get_by_text("(token 5) it looks at").wait_for()
    heads.nth(1).focus()
    heads.nth(1).press("Enter")
    page.get_by_text("Layer 1, head 2: from").wait_for()
    until(lambda: image.get_attribute("src") != before, "the map changes")
    by_key(nb, "Position", "ArrowRight", "6", "4")
    page.get_by_text("(token 4) it looks at").wait_for()
    assert page.get_by_text("entropy").count() and page.get_by_text("logit lens").count() and "layer 1" in odds.inner_text()
    page.get_by_label("Switch this head off").check()
    page.get_by_text("Switched off: 1.2").wait_for()
    page.get_by_role("columnheader", name="without").wait_for()
    page.wait_for_timeout(500)
    nb.shots("attention", which="last")
    nb.button("All heads on").click()
    until(lambda: page.get_by_text("Switched off").count() == 0, "every head is on again")
    assert nb.errors() == []
