"""Evaluation from outside: against a plain loop, on text that is hard, through the command."""
import json
import math
import os
import random
import shutil
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmbuilder.checkpoint import load_model
from llmbuilder.cli import main
from llmbuilder.config import LLMBuilderError, ModelConfig
from llmbuilder.evaluation import (
    ScoredWindows, copying, evaluate_files, evaluation_report, longest_match, make_cloze, ngram_overlap, occurs, prompts_from)
from llmbuilder.model import build_model
from llmbuilder.tokenizer import train_tokenizer

FAST = "--preset tiny --vocab-size 300 --block-size 16 --model.embedding-dim 16 --model.num-layers 1".split()


@pytest.fixture
def call(capsys):
    "call('runs') runs main(['runs']) and returns exit code, stdout and stderr."

    def run(*words):
        capsys.readouterr()
        return main([str(word) for word in words]), *capsys.readouterr()

    return run


@pytest.fixture
def pair(small_text):
    "An untrained model of 16 tokens' context and its tokenizer."
    tokenizer = train_tokenizer(small_text, vocab_size=300)
    torch.manual_seed(0)
    sizes = dict(max_seq_length=16, embedding_dim=16, num_layers=1, num_heads=2)
    return build_model(ModelConfig(vocab_size=tokenizer.vocab_size, **sizes)).eval(), tokenizer


def one_by_one(model, ids, block, stride):
    "The loss of every target from a window of its own: the same context that the policy promises."
    total, end = 0.0, min(block, len(ids) - 1)
    ends = [end]
    while ends[-1] < len(ids) - 1:
        ends.append(min(ends[-1] + stride, len(ids) - 1))
    for target in range(1, len(ids)):
        end = next(e for e in ends if e >= target)
        context = ids[max(0, end - min(block, len(ids) - 1)) : target]
        logits = model(torch.tensor([context]))[0, -1]
        total += torch.nn.functional.cross_entropy(logits[None], torch.tensor([ids[target]])).item()
    return total / (len(ids) - 1)


@pytest.mark.parametrize("stride", [16, 7, 1])
def test_the_loss_is_that_of_a_plain_loop(pair, folder, stride):
    model, tokenizer = pair
    text = "A quiet harbour and a grey boat, äöü and 東京; all of it counts.\n"
    (folder / "x.txt").write_text(text, encoding="utf-8")
    found = evaluate_files(model, tokenizer, "x.txt", stride=stride)
    ids = [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]
    with torch.no_grad():
        assert found.total.loss == pytest.approx(one_by_one(model, ids, 16, stride), abs=1e-5)
    assert (found.total.tokens, found.total.bytes) == (len(ids) - 1, len(text.encode()))
    assert found.total.bits_per_byte == pytest.approx(found.total.loss * (len(ids) - 1) / math.log(2) / len(text.encode()))


@given(n=st.integers(2, 60), block=st.integers(1, 20), share=st.floats(0.01, 1))
def test_every_id_but_the_first_is_a_target_once(n, block, share):
    windows = ScoredWindows(np.arange(n), block, max(1, round(share * block)))
    x, y = windows.get_batch(range(len(windows)))
    assert y[y >= 0].tolist() == list(range(1, n))
    assert bool((y[y >= 0] == x[y >= 0] + 1).all()) and x.shape[1] <= block


def test_documents_of_a_file_and_duplicates_all_count(pair, folder):
    lines = ["one harbour", "one harbour", "  two\n\n\n\n\nboats "]
    (folder / "x.jsonl").write_text("".join(json.dumps({"body": t}) + "\n" for t in lines), encoding="utf-8")
    found = evaluate_files(*pair, "x.jsonl", text_field="body")
    assert [d.bytes for d in found.documents] == [len(t) for t in lines]
    assert found.documents[0].loss == found.documents[1].loss and found.documents[0].start == "one harbour"


@pytest.mark.parametrize(("options", "words"), [({"block_size": 17}, "block_size=17"), ({"block_size": 0}, "block_size=0"),
                                                ({"stride": 17}, "stride=17"), ({"stride": 0}, "stride=0")])
def test_windows_that_make_no_sense(pair, folder, options, words):
    (folder / "x.txt").write_text("some text")
    with pytest.raises(LLMBuilderError, match=words):
        evaluate_files(*pair, "x.txt", **options)


def test_text_that_is_not_there_or_empty(pair, folder):
    (folder / "empty.txt").write_text("")
    for name in "none.txt", "empty.txt":
        with pytest.raises(LLMBuilderError, match=name):
            evaluate_files(*pair, name)


def test_very_short_text_gives_a_report(pair, folder):
    (folder / "x.txt").write_text("é")
    report = evaluation_report(pair, "x.txt", "x.txt", device="cpu", max_new_tokens=5)
    assert report.files.total.bytes == 2 and not report.cloze.choices and "bits per byte" in str(report)
    json.dumps(report.to_dict())


# ---- copying

def test_a_planted_passage_is_found_in_megabytes_within_seconds():
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 9))) for _ in range(3000)]
    source = " ".join(rng.choices(words, k=400_000))
    planted = source[1_000_000:1_003_000]
    began = time.perf_counter()
    assert longest_match(f"Ψ{planted}Ω", source) == planted
    assert time.perf_counter() - began < 60  # tried one by one it would take hours


@settings(max_examples=60)
@given(text=st.text("ab𝒳", max_size=30), source=st.text("ab𝒳", max_size=60), size=st.integers(1, 9), chunk=st.integers(1, 20))
def test_occurs_and_longest_match_agree_with_python(text, source, size, chunk):
    from llmbuilder.evaluation import characters

    hits = occurs(characters(text), characters(source), size, chunk).tolist()
    assert hits == [text[i : i + size] in source for i in range(len(text) - size + 1)]
    longest = max((j - i for i in range(len(text)) for j in range(i, len(text) + 1) if text[i:j] in source), default=0)
    found = longest_match(text, source)
    assert len(found) == longest and found in text and found in source


def test_thue_morse_text_does_not_confuse_the_hash():
    "This text makes any polynomial hash modulo a power of two collide."
    bits = np.array([bin(i).count("1") % 2 for i in range(4096)])
    assert not occurs(bits[:2048], 1 - bits[:2048], 2048).any() and occurs(bits[:2048], bits, 2048).all()


def test_ngram_overlap_of_other_and_equal_text():
    assert ngram_overlap("a b c d e f g h i", "z y x w v u t s r") == {1: 0, 2: 0, 4: 0, 8: 0}
    assert set(ngram_overlap("a b c d e f g h i", "x a b c d e f g h i y").values()) == {1.0}
    c = copying(["a b c", "q r s"], "a b c", sizes=[3])
    assert c.overlap == {3: 0.5} and c.longest == "a b c"


def test_prompts_and_questions_come_from_the_text(text):
    for prompt, rest in prompts_from(text, 5, rest=40):
        assert prompt + rest in text and len(prompt) <= 30
    for item in make_cloze(text, 30):
        assert item.before + item.options[item.answer] + item.after in text
        assert len({o.lower() for o in item.options}) == 4


# ---- the commands

@pytest.fixture
def model(small_text, call):
    "The output folder of a finished run."
    assert call("train", "model", "--data", "training_data.txt", "--output", "runs/a", "--epochs", "1", *FAST)[0] == 0
    return "runs/a"


def test_evaluate_command(model, call, folder):
    unseen = "The ferry left the harbour late, and nobody on the quay had counted the passengers again. " * 6
    (folder / "unseen.txt").write_text(unseen, encoding="utf-8")
    few = ["--questions", "6", "--samples", "2", "--max-new-tokens", "8", "--json"]
    code, out, _ = call("evaluate", model, "--data", "unseen.txt", "--documents", *few)
    found = json.loads(out)
    own, tokenizer, _ = load_model(folder / model / "checkpoints" / "best_checkpoint.pt")
    assert code == 0 and found["bytes"] == len(unseen)
    assert found["loss"] == pytest.approx(evaluate_files(own, tokenizer, "unseen.txt").total.loss, abs=1e-5)
    assert set(found["copying"]) == {"samples", "evaluated_text"}, "the run says what it was trained on"
    assert len(found["samples"]) == 2 and found["cloze"]["questions"] == 6
    _, out, _ = call("evaluate", model, "--data", "unseen.txt", "--stride", "4", *few)
    assert json.loads(out)["loss"] != found["loss"] and "moving on by 4" in json.loads(out)["windows"]
    code, out, _ = call("evaluate", model, "--data", "unseen.txt", "--documents", "--samples", "0", "--questions", "0")
    assert code == 0 and "The ferry left" in out and "cloze" not in out and "longest match" not in out


def test_evaluate_where_the_training_text_is_gone(model, call, folder):
    os.rename("training_data.txt", "moved.txt")
    code, out, err = call("evaluate", model, "--data", "moved.txt", "--samples", "1", "--questions", "0", "--max-new-tokens", "4")
    assert code == 0 and "--training-data" in err and "longest match" not in out
    code, out, _ = call("evaluate", model, "--data", "moved.txt", "--training-data", "moved.txt", "--samples", "1", "--questions", "0")
    assert code == 0 and "longest match" in out


@pytest.mark.parametrize(("words", "part"), [(["--samples", "-1"], "samples=-1"), (["--stride", "99"], "stride=99"),
                                             (["--data", "none.txt"], "none.txt")])
def test_evaluate_with_bad_values_is_one_sentence(model, call, words, part):
    code, out, err = call("evaluate", model, "--data", "training_data.txt", *words)
    last = err.strip().splitlines()[-1]
    assert code in (1, 2) and not out and last.startswith("error: ") and part in last


def test_runs_command(model, call, folder):
    shutil.copytree("runs/a", "runs/b")
    settings_file = folder / "runs/b/config.json"
    settings_file.write_text(settings_file.read_text().replace('"seed": 1337', '"seed": 7'))
    code, out, _ = call("runs", "runs", "--plot", "both.png")
    assert code == 0 and (folder / "both.png").read_bytes().startswith(b"\x89PNG")
    head, *rows = out.splitlines()
    assert "best validation loss" in head and "training.seed" in head and len(rows) == 3
    code, out, _ = call("runs", "runs", "--json", "--plot", "both.svg", "--against", "tokens")
    assert len(json.loads(out)["runs"]) == 2 and b"<svg" in (folder / "both.svg").read_bytes()
    assert {r["training.seed"] for r in json.loads(out)["runs"]} == {1337, 7}


def test_runs_where_there_are_none_or_a_strange_picture(model, call, folder):
    (folder / "empty").mkdir()
    assert call("runs", "empty")[0] == 1 and "empty" in call("runs", "empty")[2]
    code, _, err = call("runs", "runs", "--plot", "x.doc")
    assert code == 2 and ".png or .svg" in err and not (folder / "x.doc").exists()


def test_bash_completes_commands_and_flags(call, run):
    import subprocess

    _, script, _ = call("completion", "bash")
    ask = 't() { COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); COMPREPLY=(); _llmbuilder; echo "${COMPREPLY[@]}"; }\n'
    lines = "t llmbuilder tra; t llmbuilder train mo; t llmbuilder train model --training.warm; t llmbuilder evaluate --str\n"
    done = subprocess.run(["bash", "-c", script + ask + lines], capture_output=True, text=True)
    assert done.stdout.split("\n")[:4] == ["train", "model", "--training.warmup-steps", "--stride"], done.stderr
    for shell in "zsh", "fish":
        code, script, _ = call("completion", shell)
        assert code == 0 and "warmup-steps" in script
        if shutil.which(shell):
            assert subprocess.run([shell, "-n"], input=script, text=True).returncode == 0
    assert call("completion", "powershell")[0] == 2
