"""docs/tutorial.md, followed literally: its commands and its change to a file, in an empty folder.

    python tests/support/run_tutorial.py           in a fresh virtual environment, as it stands there
    python tests/support/run_tutorial.py --quick   in this environment: installs nothing, skips what is slow

Ends with the seconds that each step took, and with an error unless the run's operative configuration names the plug-in.
"""

from __future__ import annotations

import argparse
import ast
import os
import platform
import re
import resource
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "tutorial.md"
LIMIT_S = 600
sys.path.insert(0, str(ROOT))


@dataclass(frozen=True)
class Step:
    """A fenced block that is carried out: commands (`sh`) or a function to replace (`python`)."""

    line: int
    language: str
    mark: str
    text: str


def steps(page: str) -> list[Step]:
    """The blocks in their order; others are what is seen, not what is done."""
    found = []
    for block in re.finditer(r"^```(sh|python)(?: (\w+))?\n(.*?)^```$", page, re.M | re.S):
        found.append(Step(page.count("\n", 0, block.start()) + 1, block[1], block[2] or "", block[3]))
    return found


def replace_function(file: Path, code: str) -> None:
    """Put `code`, a function as it stands in a class, in place of the one of that name."""
    (name,) = re.findall(r"^ *def (\w+)", code, re.M)
    source = file.read_text("utf-8")
    (old,) = (e for e in ast.walk(ast.parse(source)) if isinstance(e, ast.FunctionDef) and e.name == name)
    lines = source.splitlines(keepends=True)
    file.write_text("".join([*lines[: old.lineno - 1], code, *lines[old.end_lineno :]]), "utf-8")


def borrow(folder: Path) -> None:
    """A virtual environment that sees the packages of this one, in place of what the page installs."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    line = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    (site / "borrowed.pth").write_text(line, "utf-8")
    script = folder / "venv" / "bin" / "mcframe"
    # -P: a clone called mcframe in the folder that a command starts in is no package.
    script.write_text(f'#!/bin/sh\nexec "{folder}/venv/bin/python" -P -m mcframe "$@"\n', "utf-8")
    script.chmod(0o755)


def script(page: str, folder: Path, *, quick: bool) -> str:
    """All steps as one shell script; what it does itself is done by calling this file again."""
    myself = f"{shlex.quote(sys.executable)} {shlex.quote(__file__)}"
    home = shlex.quote(str(folder))
    lines = ["set -euo pipefail", f"cd {home}"]
    for number, step in enumerate(steps(page)):
        commands = step.text
        if step.language == "python":
            commands = f"{myself} --edit {number}\n"
        elif quick and step.mark == "setup":
            commands = f"{myself} --borrow {home}\n. venv/bin/activate\n"
        elif quick and step.mark == "install":
            commands = f"{myself} --link {home}\n"
        elif quick and step.mark == "slow":
            continue
        lines += [f"echo '---- line {step.line}'", "SECONDS=0", commands.rstrip()]
        lines.append(f'echo "{step.line} $SECONDS {step.mark or step.language}" >> {home}/times')
    return "\n".join(lines) + "\n"


def follow(folder: Path, *, quick: bool) -> str:
    """Carry the page out in `folder`. Returns what took how long; raises where a command or the last check fails."""
    dropped = ("PIP_CONSTRAINT", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    # The page's models are too small for a second thread, and whoever runs this may have other work on the machine.
    environment.setdefault("OMP_NUM_THREADS", "1")
    (folder / "mcframe").symlink_to(ROOT)
    text = script(PAGE.read_text("utf-8"), folder, quick=quick)
    subprocess.run(["bash", "-c", text], env=environment, check=True)
    operative = (folder / "mcframe-salient" / "runs" / "salient" / "operative.gin").read_text("utf-8")
    assert "run.gistnet = @gistnet.salient" in operative, operative
    rows = [line.split(" ", 2) for line in (folder / "times").read_text("utf-8").splitlines()]
    total = sum(int(seconds) for _, seconds, _ in rows)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = f"{used.ru_utime + used.ru_stime:.0f} s of a core"  # what the clock says depends on who else is there
    table = "".join(f"line {line:>4} {seconds:>5} s  {what}\n" for line, seconds, what in rows)
    table += f"all       {total:>5} s, {busy} ({os.cpu_count()} cores, Python {platform.python_version()})"
    assert quick or total < LIMIT_S, f"more than ten minutes:\n{table}"
    return table


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--folder", type=Path, help="an empty one, that is kept")
    for own in ("--edit", "--borrow", "--link"):  # what the script that is carried out calls
        parser.add_argument(own, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.edit:
        (module,) = Path().glob("mcframe_*.py")
        replace_function(module, steps(PAGE.read_text("utf-8"))[int(options.edit)].text)
    elif options.borrow:
        borrow(Path(options.borrow))
    elif options.link:
        from tests.support.linking import link

        (site,) = Path(options.link).glob("venv/lib/python*/site-packages")
        link(Path.cwd(), site)
    else:
        with tempfile.TemporaryDirectory() as empty:
            print(follow(options.folder or Path(empty), quick=options.quick))


if __name__ == "__main__":
    main()
