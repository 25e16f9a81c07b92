"""Cases 26 to 38 of RELIABILITY.md, where the notebooks and the other test files do not have them, and 1,000 bad inputs."""
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import bad_inputs
import faults
import pytest
from faults import changes, signatures

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def place(tmp_path_factory, _nursery):
    "A folder with a text, a finished run, a tokenizer and a config."
    folder = tmp_path_factory.mktemp("a pläce")
    bad_inputs.prepare(folder, lambda *words: _nursery.call("cli", *words, cwd=folder).code)
    return folder


def complaint(result):
    "What is wrong with the answer to a bad input; None when nothing is."
    lines = result["err"].strip().splitlines()
    if result["changed"]:
        return f"changed on disk: {result['changed'][:4]}"
    if result.get("raised"):
        return f"raised {result['raised']}"
    if result["code"] not in (1, 2):
        return f"exit code {result['code']}"
    if "Traceback" in result["err"] + result["out"] or "mistake in llmbuilder" in result["err"]:
        return "not an error of the user's"
    if result["code"] == 1 and "checkpoint verify" in " ".join(result["words"][:2]) and "BAD: " in result["out"]:
        return None  # a folder: the answer is a list of what is good and what is not
    if not lines or not lines[-1].startswith("error: ") or len([x for x in lines if x.startswith("error:")]) != 1:
        return "not one sentence"
    if len(lines[-1]) > 1500:
        return f"a sentence of {len(lines[-1])} characters"
    return None


INPUTS, PROCESSES = 1000, 20  # in a full run; the quick run takes a sample


@pytest.mark.timeout(1800)
def test_bad_inputs_are_refused(place, nursery, measured, amount):
    "In one process, through the command's entry point: no traceback, exit code 1 or 2, one sentence, nothing on disk changed."
    numbers, size = range(amount(100, INPUTS)), 50
    results = []
    for start in range(0, len(numbers), size):
        child = nursery.start("refuse_all", str(place), list(numbers[start:start + size]), cwd=place)
        child.wait(600)
        results += [json.loads(line) for line in child.out.splitlines()]
        assert child.code == 0 and len(results) == min(start + size, len(numbers)), (results[-1:], child.code, child.err[-2000:])
    wrong = [(r["number"], r["kind"], r["words"], complaint(r), r["err"][-400:]) for r in results if complaint(r)]
    kinds, codes = Counter(r["kind"] for r in results), Counter(r["code"] for r in results)
    measured(f"{len(results):,} bad inputs through the command's entry point",
             f"{len(results) - len(wrong)} refused with one sentence, exit code 1 ({codes[1]}) or 2 ({codes[2]}), nothing on disk changed; "
             + ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())))
    assert not (place / "MARKER").exists(), "a pickle ran code"
    assert not wrong, "\n".join(map(str, wrong[:20])) + f"\n{len(wrong)} in all"


@pytest.mark.timeout(1800)
def test_bad_inputs_are_refused_by_real_processes(place, measured, amount):
    "Every fiftieth of the same inputs as `python -m llmbuilder`: nothing of this suite in the process."
    wrong, count, codes = [], amount(2, PROCESSES), Counter()
    for number in range(0, INPUTS, INPUTS // PROCESSES)[:count]:
        kind, words = bad_inputs.bad_input(place, number)
        before = signatures(place)
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
        words = [w.replace("\0", "\1") for w in words]  # the system has no such arguments
        done = subprocess.run([sys.executable, "-m", "llmbuilder", *words], cwd=place, env=env, capture_output=True, text=True,
                              encoding="utf-8", timeout=120, stdin=subprocess.DEVNULL)
        result = {"words": words, "code": done.returncode, "out": done.stdout, "err": done.stderr, "changed": changes(before, signatures(place))}
        codes[done.returncode] += 1
        if complaint(result):
            wrong.append((number, kind, words, complaint(result), done.stderr[-400:]))
    measured(f"{count} of them as real processes",
             f"{count - len(wrong)} of {count} refused, exit code 1 ({codes[1]}) or 2 ({codes[2]}), nothing on disk changed")
    assert not wrong, "\n".join(map(str, wrong))


# ------------------------------------------------------------------------------------------------------------ settings
@pytest.mark.parametrize("settings, told", [
    ({"training": {"batch_sise": 4}}, ["training.batch_sise", "batch_size"]),
    ({"training": {"batch_size": "4"}}, ["training.batch_size", '"4"']),
    ({"training": {"learning_rate": float("nan")}}, ["training.learning_rate", "nan"]),
    ({"model": {"num_layers": -3}}, ["model.num_layers", "-3"]),
    ({"trainig": {}}, ["trainig", "training"]),
])
@pytest.mark.parametrize("ending", ["json", "yaml", "toml"])
def test_case_35_a_wrong_setting_is_named_with_its_path(tmp_path, nursery, settings, told, ending):
    "In each kind of file, through the command: the key's path, the value, and what was probably meant."
    write = {"json": json.dumps, "yaml": bad_inputs.yaml_text, "toml": bad_inputs.as_toml}[ending]
    path = tmp_path / f"c.{ending}"
    path.write_text(write(settings))
    child = nursery.call("cli", "config", "validate", path)
    assert child.code == 2 and "Traceback" not in child.err
    assert all(word.lower() in child.err.lower() for word in told), child.err


# ----------------------------------------------------------------------------------------------------------- <script>
EVIL = "<script>alert(1)</script>"


def test_case_37_nothing_that_is_shown_holds_a_script(tmp_path, text):
    "In the corpus, the prompt, a folder's name, a setting: escaped in every table, chart, card and report."
    from llmbuilder import dashboard, runs
    from llmbuilder.config import Config
    from llmbuilder.data import TextDataset
    from llmbuilder.model import build_model
    from llmbuilder.tokenizer import train_tokenizer
    from llmbuilder.training import Trainer

    folder = tmp_path / "<script>alert(1)"
    folder.mkdir()
    (folder / "text.txt").write_text((text + EVIL + "\n") * 3)
    tokenizer = train_tokenizer(folder / "text.txt", vocab_size=400)
    data = TextDataset(folder / "text.txt", 16, tokenizer)
    config = Config.from_dict({"model": {"vocab_size": tokenizer.vocab_size, "max_seq_length": 16, "embedding_dim": 16, "num_layers": 1,
                                         "num_heads": 1}, "tokenizer": {"vocab_size": tokenizer.vocab_size},
                               "training": {"num_epochs": 1, "device": "cpu"}, "generation": {"stop": [EVIL]}})
    sample = faults.listener(on_epoch=lambda t, epoch: t.log_record("sample", prompt=EVIL, text=EVIL + " and " + EVIL, samples=[]))
    model = build_model(config.model)
    results = Trainer(model, data, None, config, folder / "run", callbacks=[sample], progress=False).train()
    shown = [thing._repr_markdown_() for thing in (tokenizer, data, data.report, config, config.generation, model, results)]
    shown += [runs.compare_runs([results.output_dir])._repr_markdown_()]
    try:
        raise ValueError(EVIL)
    except ValueError as error:
        shown += [dashboard.error_html(error, results.output_dir)]
    shown += [dashboard.samples_html(runs.load_run(results.output_dir))]
    assert "alert(1)" in shown[-1] and "alert(1)" in shown[-2]  # it is there, escaped
    assert not [page for page in shown if "<script" in page.lower()]
