"""Write, install and test (with tox) a new package of every kind.

    python tests/support/every_kind.py [KIND ...]
    python tests/support/every_kind.py --python PYTHON    with the mcframe of that environment

By default in a new virtual environment with the versions of constraints.txt. Prints a table. The exit code is the
number of kinds that failed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def environment(folder: Path) -> Path:
    """Create a virtual environment with mcframe and return its Python."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    constraints = str(ROOT / "constraints.txt")
    install = [python, "-m", "pip", "install", "--quiet", "-e", ROOT, "-c", constraints]
    subprocess.run(install, check=True, env=clean())
    return python


def kinds() -> list[str]:
    """Return every kind that has a template."""
    return sorted(path.name.split(".")[0] for path in (ROOT / "mcframe/scaffold/templates/kinds").glob("*.py.tmpl"))


def try_kind(kind: str, python: Path, folder: Path) -> tuple[str, list[float]]:
    """Return the result, and the seconds of each of the three commands."""
    package, seconds = folder / f"mcframe-probe-{kind}", []
    for command, cwd in (
        ([python, "-P", "-m", "mcframe", "new-plugin", f"probe-{kind}", "--kind", kind], folder),
        ([python, "-m", "pip", "install", "--quiet", "-e", ".[test]"], package),
        ([python, "-m", "tox"], package),
    ):
        began = time.monotonic()
        result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=clean())
        seconds.append(time.monotonic() - began)
        if result.returncode:
            print(result.stdout[-4000:], result.stderr[-2000:], sep="\n")
            return f"failed: {' '.join(map(str, command[1:]))}", seconds
    subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", package.name], check=True)
    (passed,) = re.findall(r"=+ (\d+ passed.*?) in ", result.stdout)
    return passed, seconds


def clean() -> dict[str, str]:
    """Return the environment variables of this process without those of tox or an activated environment."""
    dropped = ("PIP_CONSTRAINT", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "TOX_")
    return {name: value for name, value in os.environ.items() if not name.startswith(dropped)}


def main() -> int:
    """Return the number of kinds that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND")
    parser.add_argument("--python", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as empty:
        folder = Path(empty)
        python = options.python or environment(folder / "venv")
        failed = 0
        print(f"{'kind':<12}{'write':>8}{'install':>9}{'tox':>7}  tests")
        for kind in options.kinds or kinds():
            outcome, seconds = try_kind(kind, python, folder)
            failed += outcome.startswith("failed")
            times = [f"{each:.0f} s" for each in seconds] + [""] * (3 - len(seconds))
            print(f"{kind:<12}{times[0]:>8}{times[1]:>9}{times[2]:>7}  {outcome}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
