"""The training dashboard in a real browser: every button, and what it leaves on disk."""
import json
from pathlib import Path

import pytest

from llmbuilder.checkpoint import read_metrics

from .common import SETUP, until

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(280)]


def step(nb):
    "The step on the first tile."
    text = nb.page.locator(".lb-tile b").first.inner_text()
    return int(text.split("/")[0].replace(",", ""))


def events(folder):
    return [r["event"] for r in read_metrics(folder)]


def downloaded(page, kind, tries=3):
    "What a click on a link brings. The page is alive: a click that lands while it moves is lost, and a reader clicks again."
    from playwright.sync_api import TimeoutError as PlaywrightTimeout

    for left in reversed(range(tries)):
        try:
            with page.expect_download(timeout=15_000) as download:
                page.get_by_role("link", name=kind, exact=True).click()
            return Path(download.value.path()).read_bytes()
        except PlaywrightTimeout:
            if not left:
                raise


def test_each_button(notebook, lab):
    run = lab.root / "runs" / "panel"
    cells = [
        SETUP + 'make_trainer("runs/earlier", 60, progress=False).train()\nNone',
        'trainer = make_trainer("runs/panel", 1_000_000)\npanel = TrainingDashboard(trainer, prompt="ROMEO:")\npanel',
    ]
    nb = notebook("panel", cells)
    nb.run_all()
    page, pill = nb.page, nb.page.locator(".lb-pill").first
    page.get_by_text("ready to start").first.wait_for()
    assert nb.button("Stop").is_disabled() and nb.button("Pause").is_disabled()

    nb.button("Start").click()
    until(lambda: "running" in pill.inner_text(), "Start starts")
    until(lambda: step(nb) > 30, "the tiles move")
    image = page.locator("img.lb-chart").first
    before = image.get_attribute("src")
    until(lambda: image.get_attribute("src") != before, "the chart moves")
    assert nb.button("Start").is_disabled()

    nb.button("Pause").click()
    until(lambda: "paused" in pill.inner_text(), "Pause pauses")
    at = step(nb)
    until(lambda: "pause" in events(run), "the pause is logged")
    assert (run / "checkpoints" / "latest_checkpoint.pt").exists()
    page.wait_for_timeout(700)
    assert step(nb) == at
    nb.button("Resume").click()
    until(lambda: step(nb) > at, "Resume goes on")

    rate = page.get_by_label("Learning rate ×")
    for wrong in "-1", "much":
        rate.fill(wrong)
        nb.button("Apply").click()
        page.get_by_text("must be a positive number").wait_for()
    rate.fill("0.5")
    rate.press("Tab")
    page.keyboard.press("Enter")  # the focus is on Apply: all by keyboard
    until(lambda: "lr_multiplier" in events(run), "the new learning rate reaches the log")
    assert [r["multiplier"] for r in read_metrics(run) if r["event"] == "lr_multiplier"] == [0.5]

    prompt = page.get_by_label("Prompt")
    for text in "<b>Romeo", "First Citizen:":
        prompt.fill(text)
        prompt.press("Tab")
        nb.button("Sample now").click()
        page.locator(".lb-box", has_text=text).first.wait_for()
        until(lambda: any(r.get("prompt") == text for r in read_metrics(run)), "the sample is logged")

    before = image.get_attribute("src")
    page.get_by_label("Logarithmic").check()
    page.get_by_label("Compare with").select_option("earlier")
    until(lambda: image.get_attribute("src") != before, "options redraw the chart")
    slider = page.get_by_role("slider", name="Smoothing").or_(page.locator(".noUi-handle")).first
    field = page.locator("input[type=number]").first
    value = int(field.input_value())
    slider.focus()
    slider.press("ArrowRight")
    until(lambda: int(field.input_value()) == value + 1, "the field follows the slider")
    field.fill("77")
    field.press("Enter")
    until(lambda: page.evaluate("() => document.querySelector('.noUi-handle').getAttribute('aria-valuenow')").startswith("77"),
          "the slider follows the field")
    page.wait_for_timeout(3000)
    nb.shots("training")

    nb.command("docmanager:save")
    page.wait_for_timeout(500)
    at = step(nb)
    nb.open(reset=False)  # the page is loaded anew in the middle of the run
    until(lambda: page.locator(".lb-tile b").count() and step(nb) > at, "the panel comes back and goes on")
    page.get_by_role("button", name="Save files").click()
    for kind, start in ("CSV", b"event,step"), ("JSON", b"{"), ("PNG", b"\x89PNG"), ("SVG", b"<?xml"):
        assert downloaded(page, kind).startswith(start)
        assert (run / "export" / f"panel.{kind.lower()}").exists()

    nb.button("Stop").dblclick()
    until(lambda: json.loads((run / "run.json").read_text())["status"] == "stopped", "Stop stops")
    until(lambda: "stopped at step" in page.locator(".lb-pill").first.inner_text(), "the page says so")
    assert events(run)[-1] == "end" and events(run).count("end") == 1
    assert nb.errors() == []
