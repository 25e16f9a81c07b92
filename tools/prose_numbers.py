"""Numbers in the notebooks' prose that no cell above them prints or contains: `python tools/prose_numbers.py`.

Looks at numbers with decimals or thousands, rounded as they are written (also as per cent, thousands and millions). What is listed should be
a premise, a published figure or arithmetic with a pencil; a claim about a run must not be among it.
"""

import re
from pathlib import Path

import nbformat

NBS = Path(__file__).resolve().parent.parent / "nbs"
NUMBER = re.compile(r"(?<![\w.,/])(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.\d+)(?![\w.]*\w)")
ANY = re.compile(r"\d[\d,_]*(?:\.\d+)?(?:e-?\d+)?")
NOT_PROSE = re.compile(r"```.*?```|<details>.*?</details>|`[^`]*`|\$[^$]*\$|\]\([^)]*\)|arXiv:\S+", re.S)


def values(cell) -> set[float]:
    "Every number in a code cell and in what it printed."
    texts = [cell.source]
    for output in cell.outputs:
        texts += [output.get("text", ""), *(v for k, v in output.get("data", {}).items() if k.startswith("text/"))]
    return {float(n.replace(",", "").replace("_", "")) for n in ANY.findall("\n".join(texts))}


def stands_in(written: str, seen: set[float]) -> bool:
    "Whether a number, rounded as it is written, is among these."
    value, half = float(written.replace(",", "")), 0.5001 * 10 ** -len(written.partition(".")[2])
    return any(abs(x * scale - value) <= half for x in seen for scale in (1, 100, 1e-3, 1e-6))


def main():
    total = listed = 0
    for path in (*sorted(NBS.glob("*.ipynb")), *sorted((NBS / "tutorials").glob("*.ipynb"))):
        seen: set[float] = set()
        for i, cell in enumerate(nbformat.read(path, as_version=4).cells):
            if cell.cell_type == "code":
                seen |= values(cell)
                continue
            prose = NOT_PROSE.sub(" ", cell.source)
            for found in NUMBER.finditer(prose):
                total += 1
                if not stands_in(found[0], seen):
                    listed += 1
                    around = " ".join(prose[max(0, found.start() - 40) : found.end() + 40].split())
                    print(f"{path.relative_to(NBS)} [{i}] {found[0]}: {around}")
    print(f"{total} numbers, {listed} of them not above")


if __name__ == "__main__":
    main()
