"""Property-based tests of what a run leaves on disk. Those of configs, texts, tokenizers, windows and filters are in
tests/test_config.py, test_data.py, test_tokenizer.py and test_generation.py."""
import json
import math
import tempfile
from pathlib import Path

import faults
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmbuilder.checkpoint import CheckpointError, RunFolder, read_metrics, require_plain, rotate
from llmbuilder.training import epoch_order

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
WORDS = st.text(max_size=8)
NUMBERS = st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False), st.none())
TENSORS = st.lists(st.floats(width=32, allow_nan=False), max_size=5).map(torch.tensor)
STATES = st.recursive(NUMBERS | WORDS | TENSORS,
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.integers(), inner, max_size=3), max_leaves=12)


@quick
@given(state=st.dictionaries(WORDS, STATES, max_size=4))
def test_case_12_whatever_may_be_saved_can_be_loaded_and_is_the_same(state):
    require_plain(state)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, Path(folder) / "a.pt")
        again = torch.load(Path(folder) / "a.pt", weights_only=True)
    assert faults.differences(again, state) == []


@quick
@given(state=STATES, where=st.sampled_from(["list", "dict", "key"]),
       odd=st.sampled_from([object(), Path("x"), {1, 2}, b"bytes", 1j, range(3), math.sqrt, torch.float32]))
def test_case_12_anything_else_is_refused_wherever_it_is(state, where, odd):
    held = {"list": [state, odd], "dict": {"a": {"b": odd}}, "key": {("t",): state}}[where]
    with pytest.raises(CheckpointError, match="state"):
        require_plain({"x": held})


RECORDS = st.lists(st.fixed_dictionaries({"event": st.sampled_from(["train", "eval", "sample"]), "step": st.integers(0, 50)},
                                         optional={"loss": st.floats(), "text": st.text(max_size=20)}), max_size=6)


@quick
@given(records=RECORDS, cut=st.floats(0, 1), more=RECORDS)
def test_case_05_a_log_cut_anywhere_keeps_every_whole_line(records, cut, more):
    "Cut at any byte, appended to, read: what was complete is there, in order, and every line of it is valid JSON."
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(folder)
        for record in records:
            run.append(record)
        whole = run.metrics.read_bytes() if records else b""
        kept = whole[:int(len(whole) * cut)]
        run.metrics.write_bytes(kept)
        expected = [json.loads(line) for line in kept.split(b"\n")[:-1]]
        complete = kept.split(b"\n")[-1]
        if complete and complete == whole[len(kept) - len(complete):].split(b"\n")[0]:
            expected.append(json.loads(complete))  # only the line's end was cut
        assert read_metrics(folder) == expected
        for record in more:
            run.append(record)
        assert len(read_metrics(folder)) == len(expected) + len(more)
        run.forget_after(20)
        assert [r["step"] for r in read_metrics(folder)] == [r["step"] for r in expected + more if r["step"] <= 20]
        for line in run.metrics.read_text().splitlines():
            json.loads(line, parse_constant=lambda name: pytest.fail(name))


@quick
@given(n=st.integers(1, 200), batch=st.integers(1, 40), epoch=st.integers(0, 10**6), seed=st.integers(0, 2**64), shuffle=st.booleans(),
       stop=st.integers(0, 50))
def test_case_02_stopped_anywhere_each_window_still_comes_once_an_epoch(n, batch, epoch, seed, shuffle, stop):
    order = epoch_order(n, epoch, seed, shuffle)
    batches = list(order.split(batch))
    samples = sum(len(b) for b in batches[:stop])
    resumed = batches[:stop] + list(epoch_order(n, epoch, seed, shuffle)[samples:].split(batch))
    assert [b.tolist() for b in resumed if len(b)] == [b.tolist() for b in batches]
    assert sorted(torch.cat(resumed).tolist()) == list(range(n))


@settings(max_examples=25, deadline=None)
@given(names=st.lists(st.integers(0, 30), unique=True, max_size=8), keep=st.integers(0, 4))
def test_case_11_rotation_keeps_the_newest(names, keep):
    import os

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for i, n in enumerate(names):  # written in this order
            path = folder / f"step_{n:08d}.pt"
            path.touch()
            os.utime(path, ns=(i * 10**9, i * 10**9))
        (folder / "latest_checkpoint.pt").touch()
        rotate(folder, keep)
        left = sorted(int(p.stem[5:]) for p in folder.glob("step*"))
        assert left == sorted(names[-keep:] if keep else names) and (folder / "latest_checkpoint.pt").exists()
