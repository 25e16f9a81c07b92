"""The harness of the side-by-side measurements: its sums, not its speeds."""

import json

import pytest

bench = pytest.importorskip("benchmarks.__main__", reason="only in a checkout")


@pytest.fixture
def harness(monkeypatch, tmp_path):
    "The harness in an empty folder, with two rows and sides that answer what `answers` says, one after another."
    answers, calls = {}, []

    def run_side(side, **options):
        calls.append((side, options["repeat"]))
        value = answers[side][len([c for c in calls if c[0] == side]) - 1]
        if value is None: raise bench.SideFailed(f"{side} failed:\nno memory")
        return {"speed": value}

    rows = {"fast": ("tokens", "ours", {"peer": "theirs"}, "speed", "higher", {"peer": 2.0}, "tokens/s"),
            "slow": ("seconds", "ours2", {"peer": "theirs2", "limit": None}, "speed", "lower", {"peer": 2.0, "limit": 5.0}, "s"),
            "gpu_row": ("CUDA: seconds", "ours2", {"peer": "theirs2"}, "speed", "lower", {"peer": 2.0}, "s")}
    monkeypatch.setattr(bench, "ROWS", rows)
    monkeypatch.setattr(bench, "HERE", tmp_path)
    monkeypatch.setattr(bench, "run_side", run_side)
    (tmp_path / "NOTES.md").write_text("## By hand\n")
    return answers, calls, tmp_path


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["benchmarks", *arguments])
    bench.main()


def test_ratios_are_above_one_where_ours_is_ahead_and_sides_take_turns(harness, monkeypatch):
    answers, calls, folder = harness
    answers.update(ours=[30, 20, 40], theirs=[10, 20, 10], ours2=[2, 4, 3], theirs2=[6, 6, 12])
    run(monkeypatch, "fast", "slow")
    assert calls[:4] == [("ours", 0), ("theirs", 0), ("ours", 1), ("theirs", 1)]
    rows = json.loads((folder / "results.json").read_text())
    fast, slow = rows["fast"]["ratios"]["peer"], rows["slow"]["ratios"]["peer"]
    assert (fast["value"], fast["low"], fast["high"]) == (3, 1, 4)
    assert (slow["value"], slow["low"], slow["high"]) == (2, 1.5, 4)
    table = (folder / "RESULTS.md").read_text()
    assert "| 3.00 (1.00 to 4.00) | 2 |" in table and "at most 5.0 s" in table and table.endswith("## By hand\n")


def test_add_keeps_the_earlier_repeats(harness, monkeypatch):
    answers, calls, folder = harness
    answers.update(ours=[30, 20, 40], theirs=[10, 10, 10])
    run(monkeypatch, "fast", "--repeats", "1")
    run(monkeypatch, "fast", "--repeats", "2", "--add")
    row = json.loads((folder / "results.json").read_text())["fast"]
    assert row["repeats"] == 3 and row["ours"] == 30
    assert calls[2:] == [("ours", 1), ("theirs", 1), ("ours", 2), ("theirs", 2)]  # each repeat has a seed of its own


def test_a_side_that_fails_does_not_cost_the_other_rows(harness, monkeypatch):
    answers, _, folder = harness
    answers.update(ours=[None], theirs=[1], ours2=[2], theirs2=[6])
    with pytest.raises(SystemExit, match="fast: ours failed"):
        run(monkeypatch, "fast", "slow", "--repeats", "1")
    assert list(json.loads((folder / "results.json").read_text())) == ["slow"]


def test_without_a_gpu_its_rows_say_so(harness, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    run(monkeypatch, "gpu_row")
    assert "not measured: no GPU" in (harness[2] / "RESULTS.md").read_text()
