"""The table in README.md names every case, and only tests that exist."""
import re
from fnmatch import fnmatch
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROWS = [line for line in (HERE / "README.md").read_text(encoding="utf-8").splitlines() if re.match(r"\| \d+ ", line)]


def test_the_table_has_every_case_once():
    assert [int(re.match(r"\| (\d+) ", row)[1]) for row in ROWS] == list(range(1, 39))


def test_the_table_names_tests_that_exist():
    missing = []
    for row in ROWS:
        number = int(re.match(r"\| (\d+) ", row)[1])
        found = re.findall(r"(test_\w+\.py): ((?:`test_case_[\w*]+`(?:, )?)+)", row)
        assert found, row
        for file, patterns in found:
            path = HERE / file if (HERE / file).exists() else HERE.parent / file
            names = re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.M) if path.exists() else []
            for pattern in re.findall(r"`(\S+?)`", patterns):
                assert f"{number:02}" in pattern, f"{pattern} in the row of case {number}"
                if not [name for name in names if fnmatch(name, pattern)]:
                    missing.append(f"{file}: {pattern}")
    assert not missing


def test_every_numbered_test_is_in_the_table():
    listed = " ".join(ROWS)
    for path in [*HERE.glob("test_*.py"), *HERE.parent.glob("test_*.py")]:
        for name in re.findall(r"^def (test_case_\d\d\w*)", path.read_text(encoding="utf-8"), re.M):
            patterns = re.findall(rf"{path.name}: ((?:`test_case_[\w*]+`(?:, )?)+)", listed)
            known = [p for group in patterns for p in re.findall(r"`(\S+?)`", group)]
            assert any(fnmatch(name, pattern) for pattern in known), f"{path.name}: {name} is not in README.md's table"
