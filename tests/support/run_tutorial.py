"""Follow docs/tutorial.md in an empty folder: its commands, and its change of a file.

    python tests/support/run_tutorial.py           in a new virtual environment
    python tests/support/run_tutorial.py --quick   with the packages of this environment, without steps marked as slow,
                                                   and with a run of two steps

Prints the seconds of each step. Fails unless the operative configuration of the run names the plug-in.
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
    """A fenced block that is executed: commands (`sh`) or a function to replace (`python`)."""

    line: int
    language: str
    mark: str
    text: str


def steps(page: str) -> list[Step]:
    """Return the blocks in order. Blocks of other languages show output."""
    found = []
    for block in re.finditer(r"^```(sh|python)(?: (\w+))?\n(.*?)^```$", page, re.M | re.S):
        found.append(Step(page.count("\n", 0, block.start()) + 1, block[1], block[2] or "", block[3]))
    return found


def replace_function(file: Path, code: str) -> None:
    """Replace the function of the same name by `code`, an indented method."""
    (name,) = re.findall(r"^ *def (\w+)", code, re.M)
    source = file.read_text("utf-8")
    (old,) = (e for e in ast.walk(ast.parse(source)) if isinstance(e, ast.FunctionDef) and e.name == name)
    lines = source.splitlines(keepends=True)
    file.write_text("".join([*lines[: old.lineno - 1], code, *lines[old.end_lineno :]]), "utf-8")


def borrow(folder: Path) -> None:
    """Create a virtual environment with the packages of this one, instead of installing them."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    line = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    (site / "borrowed.pth").write_text(line, "utf-8")
    script = folder / "venv" / "bin" / "mcframe"
    # -P: the clone `mcframe` in the current folder must not be imported as a package.
    script.write_text(f'#!/bin/sh\nexec "{folder}/venv/bin/python" -P -m mcframe "$@"\n', "utf-8")
    script.chmod(0o755)


def script(page: str, folder: Path, *, quick: bool) -> str:
    """Return all steps as one shell script, which calls this file for edits and links."""
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
        elif quick:
            commands = re.sub(r"^(mcframe run .*)$", r"\1 --set 'run.total_tokens = 2048'", commands, flags=re.M)
        lines += [f"echo '---- line {step.line}'", "SECONDS=0", commands.rstrip()]
        lines.append(f'echo "{step.line} $SECONDS {step.mark or step.language}" >> {home}/times')
    return "\n".join(lines) + "\n"


def follow(folder: Path, *, quick: bool) -> str:
    """Execute the page in `folder` and return a table of durations. Raises if a command or the final check fails."""
    dropped = ("PIP_CONSTRAINT", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    # The models are too small for a second thread.
    environment.setdefault("OMP_NUM_THREADS", "1")
    (folder / "mcframe").symlink_to(ROOT)
    text = script(PAGE.read_text("utf-8"), folder, quick=quick)
    subprocess.run(["bash", "-c", text], env=environment, check=True)
    operative = (folder / "mcframe-salient" / "runs" / "salient" / "operative.gin").read_text("utf-8")
    assert "run.gistnet = @gistnet.salient" in operative, operative
    rows = [line.split(" ", 2) for line in (folder / "times").read_text("utf-8").splitlines()]
    total = sum(int(seconds) for _, seconds, _ in rows)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = f"{used.ru_utime + used.ru_stime:.0f} s of a core"  # wall-clock time depends on other load
    table = "".join(f"line {line:>4} {seconds:>5} s  {what}\n" for line, seconds, what in rows)
    table += f"all       {total:>5} s, {busy} ({os.cpu_count()} cores, Python {platform.python_version()})"
    assert quick or total < LIMIT_S, f"more than ten minutes:\n{table}"
    return table


def main() -> None:
    """Parse the command line and follow the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--folder", type=Path, help="an empty folder, which is kept")
    for own in ("--edit", "--borrow", "--link"):  # for the script
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
