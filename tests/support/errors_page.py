"""Write the messages of docs/plugins/errors.md, each from the case that prints it."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from typer.testing import CliRunner

from mcframe.cli.app import app
from mcframe.cli.user_errors import report_user_errors
from mcframe.config.run_config import load_run_config
from mcframe.context.counter_rng import variant_seeds
from mcframe.training.build import build_components
from mcframe.training.probe import probe_plugins
from mcframe.training.train_step import StepBatch
from tests.support.error_cases import CASES
from tests.support.launches import SMOKE, Site

PAGE = Path(__file__).parents[2] / "docs" / "plugins" / "errors.md"
_BETWEEN = re.compile(r"(<!-- messages -->\n).*?(<!-- end of messages -->)", re.S)


@contextlib.contextmanager
def installed(case: str, folder: Path) -> Iterator[None]:
    """Install the package of a case into the folder, on `sys.path`, with a terminal of 5,000 columns."""
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "5000"
    Site(folder).install("mylab", CASES[case].source)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("mylab", None)
        os.environ.pop("COLUMNS")
        os.environ.update({"COLUMNS": columns} if columns else {})


def one_step(bindings: Sequence[str]) -> int:
    """Run the probe, and a training step of two sequences, as `mcframe/run.py` does without the engine."""
    torch.manual_seed(0)
    loaded = load_run_config([SMOKE], bindings)
    with loaded.explaining():
        components = build_components(loaded.run_config)
        step, tokens = components.step, torch.randint(257, (2, components.tree.window + 1))
        length = loaded.run_config.variant_length(0)
        probe_plugins(step.eval(), step, tokens, [length])
        seeds = variant_seeds(0, torch.arange(2), step.model.strategy.count)
        step.train()(StepBatch(tokens, seeds, length))
    return 0


def output_of(case: str) -> tuple[int, str]:
    """Return the exit code of a case and everything that it prints."""
    settings = [part for binding in CASES[case].bindings for part in ("--set", binding)]
    if CASES[case].at == "check":
        result = CliRunner().invoke(app, ["check", str(SMOKE), *settings])
        return result.exit_code, result.output
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = report_user_errors(lambda: one_step(CASES[case].bindings), traceback=False)
    return code, printed.getvalue()


def message_of(output: str, folder: Path) -> str:
    """Return the text in the frame, with the folder of packages and the list of plug-ins shortened."""
    lines = [line.strip("│ ") for line in output.splitlines() if line.startswith("│")]
    text = "\n".join(line.rstrip() for line in lines).replace(str(folder), ".../site-packages")
    return re.sub(r"(expected one of: ).*", r"\1...", text)


def section(case: str, message: str) -> str:
    """Return the part of the page about one case."""
    return f"## A plug-in that {CASES[case].title}\n\n```\n{message}\n```\n"


def main() -> None:
    """Write the page."""
    sections = []
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder, installed(case, Path(folder)):
            sections.append(section(case, message_of(output_of(case)[1], Path(folder))))
    text, count = _BETWEEN.subn(lambda found: found[1] + "\n".join(["", *sections, found[2]]), PAGE.read_text("utf-8"))
    assert count == 1, "docs/plugins/errors.md: expected one pair of marks"
    PAGE.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
