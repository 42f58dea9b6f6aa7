"""Check style and types of packages of `mcframe new-plugin` and of plugins/spectral with the rules of this repository.

python tests/support/lint_templates.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from mcframe.scaffold.kinds import TEMPLATES
from mcframe.scaffold.names import Names
from mcframe.scaffold.package import render, write

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "plugins" / "spectral"


def main() -> int:
    """Return the number of tools that report an error."""
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["ruff"]["lint"]
    with tempfile.TemporaryDirectory() as folder:
        packages = []
        for kind in TEMPLATES:
            names = Names.of("probe", kind)
            packages.append(Path(folder, kind))
            write(packages[-1], render(Names(f"probe-{kind}", names.name), kind))
        packages.append(EXAMPLE)
        style = ["--select", ",".join(rules["select"]), "--ignore", ",".join(rules["ignore"])]
        folders = [part for package in packages for part in (package, package / "tests")]
        modules = [str(file) for part in folders for file in part.glob("*mcframe_*.py")]
        commands = (
            ["ruff", "check", "--no-cache", *style, "--per-file-ignores", "test_*.py:D1", folder, EXAMPLE],
            ["ruff", "format", "--no-cache", "--check", folder, EXAMPLE],
            [sys.executable, "-m", "mypy", "--strict", *modules],
        )
        search = os.pathsep.join(map(str, [ROOT, *packages]))
        results = [subprocess.run(each, cwd=ROOT, env={**os.environ, "MYPYPATH": search}) for each in commands]
    return sum(result.returncode != 0 for result in results)


if __name__ == "__main__":
    sys.exit(main())
