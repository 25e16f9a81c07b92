"""How the notebooks read, in numbers: a markdown table for CONTRIBUTING.md.

    python tools/readability.py              count only
    python tools/readability.py --seconds    also run each notebook (nbdev's runner, one after the other) and time it
    python tools/readability.py --log FILE   take the seconds from the output of .ci/run or tools/test.sh
"""
import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEST = re.compile(r"^\s*(?:assert\b|test_\w+\(|with ExceptionExpected)", re.M)
COLUMNS = "notebook", "words", "code cells", "median lines", "longest export", "tests", "plots", "exercises", "seconds"


def lines(cell):
    "What somebody has to read: no directives, no blank lines."
    return [line for line in "".join(cell["source"]).splitlines() if line.strip() and not line.startswith("#|")]


def has(cell, directive):
    return re.search(rf"^#\|\s*{directive}", "".join(cell["source"]), re.M) is not None


def measure(path):
    "One row of the table, without the seconds."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    prose = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    code = [c for c in cells if c["cell_type"] == "code" and lines(c)]
    shown = [c for c in code if not has(c, "hide")]
    exported = [len(lines(c)) for c in code if has(c, "export")]
    source = "\n".join("".join(c["source"]) for c in code)
    plots = sum("image/png" in o.get("data", {}) or "image/svg+xml" in o.get("data", {}) for c in code for o in c["outputs"])
    return [
        path.relative_to(ROOT / "nbs").with_suffix("").as_posix(),
        len(re.findall(r"\b[\w'-]+\b", re.sub(r"```.*?```", "", prose, flags=re.S))),
        len(code),
        f"{statistics.median(map(len, map(lines, shown))):g}" if shown else "",
        max(exported, default=""),
        len(TEST.findall(source)),
        plots,
        len(set(re.findall(r"def check_exercise_(\d+)", source))),
    ]


def seconds(path):
    "Time of a run from top to bottom; exits where the notebook fails."
    start = time.perf_counter()
    cmd = ["nbdev_test", "--path", str(path), "--n_workers", "0"]
    done = subprocess.run(cmd, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{path.name}\n{done.stderr}")
    return f"{time.perf_counter() - start:.0f}"


def logged(file):
    "Seconds by notebook, as nbdev_test --timing printed them."
    found = re.findall(r"^(?:\S*/)?(\S+)\.ipynb: (\d+) secs$", Path(file).read_text(encoding="utf-8"), re.M)
    return dict(found) or sys.exit(f"{file} holds no timings of notebooks: did they all run?")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", action="store_true", help="run each notebook and time it")
    parser.add_argument("--log", help="output of .ci/run or tools/test.sh with the seconds in it")
    args = parser.parse_args()
    known = logged(args.log) if args.log else {}
    found = [p for p in (ROOT / "nbs").rglob("*.ipynb") if not re.search(r"/[._]", p.relative_to(ROOT).as_posix())]
    print("|", " | ".join(COLUMNS), "|")
    print("|" + " --- |" * len(COLUMNS))
    for path in sorted(found, key=lambda p: (p.stem != "index", len(p.parts), p)):
        print("|", *(f"{v} |" for v in [*measure(path), seconds(path) if args.seconds else known.get(path.stem, "")]))


if __name__ == "__main__":
    main()
