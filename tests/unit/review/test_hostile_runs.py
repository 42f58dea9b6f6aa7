"""Hostile texts in every field of a run: pages show them as text, and nothing is executed, loaded or left open."""

from __future__ import annotations

import ast
import json
import re

import numpy as np
import pytest
from typer.testing import CliRunner

from mcframe.cli.app import app
from mcframe.review.render import _fence, _markdown
from tests.support.synthetic_runs import CONFIG, healthy, write_run
from tests.unit.review.test_pages import Page, pages

HOSTILE = (
    "\"'><script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    "' onmouseover='alert(1)",
    "]]><svg onload=a>",
    "{{ 7 * 7 }}{% raw %}",
    "-->",
    "javascript:alert(1)",
    "[link](javascript:alert(1)) ![i](//evil/x.png)",
    "\n# heading\n| a | b |",
    "````\n```\n<b>",
    "$\\frac$",
    "[red]markup[/red] [/]",
    "\x1b]0;owned\x07\x1b[2J",
    '""" + open("executed", "w") + """',
)
TEXT = "".join(HOSTILE)


def hostile_run(folder, name):
    metrics = healthy()
    extra = (f"mc/lod_delta/{TEXT}", f"mc/{TEXT}_ms", f"train/update_ratio/{TEXT}", f"val/{TEXT}", TEXT)
    metrics |= {name: np.linspace(1, 9, len(metrics["train/lr"])) for name in extra}
    provenance = {"command": ["mcframe", TEXT], "revision": TEXT, "machine": {TEXT: TEXT}, "versions": {TEXT: TEXT},
                  "plugins": {TEXT: TEXT}, "python": TEXT, "held_out_overlap": TEXT}  # fmt: skip
    config = CONFIG | {"run.text": repr(TEXT), f"{TEXT.replace(chr(10), '')}.x": "1"}
    run = write_run(folder / name, metrics, config=config, provenance=provenance, evaluation={TEXT: 1.0})
    (run / "summary.json").write_text(json.dumps({"status": TEXT, "tokens": 10**12}))
    strips = {"name": "working_contexts", "tokens": 12288, "text": f"focused ·1·22|··  {TEXT}"}
    (run / "texts.jsonl").write_text(json.dumps(strips) + "\n")
    return run


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return the output of the commands and the pages."""
    folder = tmp_path_factory.mktemp("runs")
    name = TEXT.replace("/", "").replace("\x00", "")[:120]
    runs = [str(hostile_run(folder, f"{number}{name}")) for number in (1, 2)]
    found = []
    for command, arguments in {"review": [runs[0], "--against", runs[1]], "compare": runs}.items():
        out = folder / command
        result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [command, *arguments, "--out", str(out)])
        assert result.exit_code == 0, result.output
        found.append((result.output, *pages(out, "comparison" if command == "compare" else "review")))
    return runs[0], found


def test_pages_show_hostile_texts_as_text(written):
    for _, html, _ in written[1]:
        page = Page(html)  # fails on attributes that run scripts, and on tags that do not match
        assert page.open == []
        assert not {"script", "iframe", "object", "embed", "base", "form"} & set(page.tags)
        assert all(reference.startswith(("#", "data:")) for reference in page.references)
        assert "<script>alert(1)</script>" in "".join(page.text)


def test_markdown_shows_hostile_texts_as_text(written):
    for _, _, markdown in written[1]:
        fence, outside = "", []
        for line in markdown.splitlines():
            opened = re.fullmatch(r"(`{3,})", line)
            if opened and (not fence or line == fence):
                fence = "" if fence else line
            elif not fence:
                outside.append(line)
        assert not fence
        text = "\n".join(outside)
        assert not re.search(r"<(?!!--)[a-zA-Z/]", text)
        assert not re.search(r"(?<!\\)\]\((?!plots/[\w.]+\.png\))", text)
        assert "# heading" not in {line.strip() for line in outside}


def test_nothing_that_is_printed_or_written_has_control_characters(written):
    for texts in written[1]:
        assert not any(character in text for text in texts for character in "\x1b\x07\x9b")


def test_the_program_for_wandb_has_hostile_texts_as_literals(written, tmp_path):
    run, _ = written
    result = CliRunner().invoke(app, ["dashboard", "wandb", run, "--out", str(tmp_path / "it.py")])
    assert result.exit_code == 0, result.output
    program = ast.parse((tmp_path / "it.py").read_text("utf-8"))
    called = {ast.unparse(node.func) for node in ast.walk(program) if isinstance(node, ast.Call)}
    assert "open" not in called


@pytest.mark.parametrize("text", HOSTILE)
def test_one_line_of_markdown(text):
    assert "\n" not in _markdown(text)
    assert len(_fence(text)) >= 3
    assert _fence(text) not in text
