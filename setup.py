"""Packaging for llmbuilder: every value comes from settings.ini, which nbdev reads too."""
import shlex
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).resolve().parent
ini = ConfigParser(delimiters=["="])
ini.read(here / "settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]
lib = cfg["lib_path"]


def words(key):
    return shlex.split(cfg.get(key, ""))


class BuildWithCourse(build_py):
    "A wheel carries the notebooks too, as llmbuilder/nbs, for `llmbuilder lab`; an editable install finds them in the repository."

    def run(self):
        super().run()
        if self.editable_mode: return
        for file in sorted(p for end in ("ipynb", "txt", "png") for p in (here / "nbs").rglob(f"*.{end}")):
            place = file.relative_to(here / "nbs")
            if any(part.startswith((".", "_")) or part == "runs" for part in place.parts): continue
            target = Path(self.build_lib) / lib / "nbs" / place
            self.mkpath(str(target.parent))
            self.copy_file(str(file), str(target))


setup(
    cmdclass={"build_py": BuildWithCourse},
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    keywords=cfg["keywords"].split(),
    url=cfg["git_url"],
    license="Apache-2.0",
    python_requires=">=" + cfg["min_python"],
    packages=find_packages(include=[lib, lib + ".*"]),
    package_data={lib: words("package_data")},
    install_requires=words("requirements"),
    extras_require={k[: -len("_requirements")]: words(k) for k in cfg if k.endswith("_requirements")},
    entry_points={
        "console_scripts": words("console_scripts"),
        "nbdev": [f"{lib}={lib}._modidx:d"],
    },
    zip_safe=False,
)
