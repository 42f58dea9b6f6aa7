"""Write the reference of docs/plugins/hooks.md from `Hooks`: `python tests/support/hooks_reference.py`."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from mcframe.hookspecs import Hooks

PAGE = Path(__file__).parents[2] / "docs" / "plugins" / "hooks.md"
_BETWEEN = re.compile(r"(<!-- hooks -->\n).*?(<!-- end of hooks -->)", re.S)


def reference() -> str:
    """Return a section for each hook, in the order of a run: its parameters and its docstring."""
    parts = []
    for name, function in vars(Hooks).items():
        if not name.startswith("_"):
            parameters = [each for each in inspect.signature(function).parameters if each != "self"]
            parts += [f"## `{name}({', '.join(parameters)})`", inspect.getdoc(function) or ""]
    return "\n" + "\n\n".join(parts) + "\n\n"


def with_reference(page: str) -> str:
    """Return the page with the current reference."""
    text, count = _BETWEEN.subn(lambda found: found[1] + reference() + found[2], page)
    assert count == 1, "docs/plugins/hooks.md: expected one pair of hook marks"
    return text


if __name__ == "__main__":
    PAGE.write_text(with_reference(PAGE.read_text("utf-8")), "utf-8")
