"""docs/settings.md and the plug-ins of docs/catalogue.md are generated from docstrings that describe every setting."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from mcframe.cli.app import app
from mcframe.config.configurables import Configurable
from mcframe.config.run_config import GIN_CONFIGURABLES
from tests.support import settings_page as page

ENTRIES = [Configurable(name, GIN_CONFIGURABLES[name], "") for name in page.GROUPS]
ENTRIES += [entry for _, own in page.plugins() for entry in own]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_the_docstring_describes_the_plug_in_and_every_setting(entry: Configurable) -> None:
    assert len(page.description(entry)[0].split()) >= 2
    assert [each.binding for each in page.bindings(entry) if not each.meaning] == []


@pytest.mark.parametrize("setting", ["run.losses", "context.window", "gpt.gist_bias", "allocator.greedy.cooldown"])
def test_every_setting_has_one_row(setting: str) -> None:
    pages = page.SETTINGS_PAGE.read_text("utf-8") + page.CATALOGUE_PAGE.read_text("utf-8")
    assert pages.count(f"| `{setting}` |") == 1


def test_the_gin_of_the_configuration_page_loads(tmp_path: Path) -> None:
    text = (page.DOCS / "configuration.md").read_text("utf-8")
    blocks = [block.split("```")[0] for block in text.split("```gin\n")[1:]]
    assert len(blocks) == 2
    (tmp_path / "mine.gin").write_text("\n".join(blocks), "utf-8")
    checked = CliRunner().invoke(app, ["check", str(tmp_path / "mine.gin")])
    assert checked.exit_code == 0, checked.output
