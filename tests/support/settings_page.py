"""Write docs/settings.md and the tables of docs/catalogue.md: `python tests/support/settings_page.py`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from mcframe.config.configurables import Configurable
from mcframe.config.parameters import Parameter, parameters_of
from mcframe.config.run_config import GIN_CONFIGURABLES, PLUGIN_FIELDS, SETTINGS, all_plugins
from mcframe.config.schema import MULTI_KINDS

DOCS = Path(__file__).parents[2] / "docs"
SETTINGS_PAGE, CATALOGUE_PAGE = DOCS / "settings.md", DOCS / "catalogue.md"
GROUPS = ("run", *(name for name in GIN_CONFIGURABLES if name != "run"))
_BETWEEN = re.compile(r"(<!-- tables -->\n).*?(<!-- end of tables -->)", re.S)
_INTRODUCTION = """# Settings

Every binding of a gin file with its type, default and meaning. *required* has no default and must be bound. T is
`context.window`, K `context.block_size`, G `context.slots`. How to write a gin file: [configuration](configuration.md).

Generated from docstrings: `python tests/support/settings_page.py`. Do not edit this page.
"""


def plugins() -> Iterator[tuple[str, list[Configurable]]]:
    """Yield each kind with the plug-ins of mcframe, in alphabetical order."""
    for kind, offered in all_plugins().implementations.items():
        own = [entry for entry in offered.values() if entry.distribution in ("", "mcframe")]
        yield kind, [Configurable(f"{kind}.{e.name}", e.factory, kind) for e in sorted(own, key=lambda e: e.name)]


def bindings(entry: Configurable) -> list[Parameter]:
    """Return what a gin file can bind. The other groups of settings are no bindings of `run`."""
    groups = {f"run.{name}" for name in (*SETTINGS, "gpt")}
    return [parameter for parameter in parameters_of(entry) if parameter.binding not in groups]


def description(entry: Configurable) -> list[str]:
    """Return the paragraphs of the docstring in front of its sections, without line breaks."""
    text = re.split(r"^(?:Args|Attributes|Source|Raises):\n", inspect.getdoc(entry.factory) or "", flags=re.M)[0]
    text = text.replace(f" (gin: `{entry.name}`)", "")
    return [" ".join(each.split()) for each in text.strip().split("\n\n")]


def source(entry: Configurable) -> str:
    """Return the `Source:` section of the docstring; empty if there is none."""
    section = re.search(r"^Source:\n((?: +.*\n?)+)", inspect.getdoc(entry.factory) or "", re.M)
    return " ".join(section[1].split()).rstrip(".") if section else ""


def settings_page() -> str:
    """Return docs/settings.md."""
    parts = [_INTRODUCTION, "## Groups\n"]
    parts += [_section(Configurable(name, GIN_CONFIGURABLES[name], "")) for name in GROUPS]
    for kind, own in plugins():
        parts += [f"## {kind}\n", *map(_section, own)]
    return "\n".join(parts)


def catalogue_tables() -> str:
    """Return one table for each kind: name, what the plug-in does, its source."""
    parts = []
    for kind, own in plugins():
        rows = [f"| {_link(entry)} | {_cell(description(entry)[0])} | {_cell(source(entry))} |" for entry in own]
        parts.append("\n".join([f"## {kind}\n", "| name | description | source |", "| --- | --- | --- |", *rows, ""]))
    return "\n".join(["", *parts, ""])


def with_tables(page: str) -> str:
    """Return the catalogue with current tables."""
    text, count = _BETWEEN.subn(lambda found: found[1] + catalogue_tables() + found[2], page)
    assert count == 1, "docs/catalogue.md: expected one pair of table marks"
    return text


def _section(entry: Configurable) -> str:
    rows = [f"| `{p.binding}` | {_type(p)} | {_default(p)} | {_cell(p.meaning)} |" for p in bindings(entry)]
    table = ["| binding | type | default | meaning |", "| --- | --- | --- | --- |", *rows, ""] if rows else []
    origin = [f"Source: {source(entry)}.\n"] if source(entry) else []
    return "\n".join([f"### {entry.name}\n", *(f"{each}\n" for each in description(entry)), *origin, *table])


def _type(parameter: Parameter) -> str:
    kind = PLUGIN_FIELDS.get(parameter.binding.removeprefix("run."))
    if kind and parameter.binding.startswith("run."):
        return f"list of `@{kind}.NAME`" if kind in MULTI_KINDS else f"`@{kind}.NAME`"
    return re.sub(r"('\w+')", r"`\1`", _cell(parameter.type))


def _default(parameter: Parameter) -> str:
    return "*required*" if parameter.required else f"`{parameter.default}`"


def _link(entry: Configurable) -> str:
    return f"[`{entry.name.split('.')[1]}`](settings.md#{entry.name.replace('.', '')})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").rstrip(".")


if __name__ == "__main__":
    SETTINGS_PAGE.write_text(settings_page(), "utf-8")
    CATALOGUE_PAGE.write_text(with_tables(CATALOGUE_PAGE.read_text("utf-8")), "utf-8")
