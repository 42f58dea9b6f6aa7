"""Rendering the templates of a kind and writing them, all of them or none."""

from __future__ import annotations

import datetime
import shutil
import tempfile
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template

from mcframe.errors import UserError
from mcframe.hookspecs import API_VERSION
from mcframe.scaffold.kinds import KINDS
from mcframe.scaffold.names import Names
from mcframe.scaffold.origin import requirement, versions

_TEMPLATES = files("mcframe.scaffold") / "templates"

_FILES = {
    "README.md": "package/README.md.tmpl",
    "LICENSE": "package/LICENSE.tmpl",
    "pyproject.toml": "package/pyproject.toml.tmpl",
    "$module.py": "kinds/$kind.py.tmpl",
    "$name.gin": "package/choose.gin.tmpl",
    "tests/test_conformance.py": "package/conformance.py.tmpl",
    "tests/test_$module.py": "kinds/$kind.test.tmpl",
    "tox.ini": "package/tox.ini.tmpl",
    "toxfile.py": "package/toxfile.py.tmpl",
    ".gitignore": "package/gitignore.tmpl",
    ".github/workflows/tests.yml": "package/workflow.yml.tmpl",
}
"""What a package holds, and the template of each file; no template is hidden, for wheels lose hidden files."""


def render(names: Names, kind: str) -> dict[str, str]:
    """The text of every file, by its path in the package."""
    words = _words(names, kind)

    def filled(template: str) -> str:
        path = Template(template).substitute(words)
        return Template(_TEMPLATES.joinpath(path).read_text("utf-8")).substitute(words)

    words["choice"] = filled("kinds/$kind.gin.tmpl").rstrip()
    words["gin"] = filled("package/choose.gin.tmpl")
    return {Template(path).substitute(words): filled(template) for path, template in _FILES.items()}


def write(folder: Path, content: Mapping[str, str]) -> None:
    """Make `folder` with these files. Raises UserError where it exists, and then leaves everything as it was."""
    if folder.exists() or folder.is_symlink():
        raise UserError(
            f"{folder} exists already; nothing was written",
            remedy="choose another name, another --dir, or remove it first",
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Written beside its place and then moved there, so that no half of a package is ever left behind.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-plugin-") as partial:
        for path, text in content.items():
            file = Path(partial, folder.name, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, "utf-8")
        shutil.move(Path(partial, folder.name), folder)


def what_to_change(names: Names, kind: str) -> str:
    """A sentence for the author: which function, in which file, decides what."""
    return f"{names.camel}{KINDS[kind].suffix}.{KINDS[kind].function} in {names.module}.py {KINDS[kind].change}."


def _words(names: Names, kind: str) -> dict[str, str]:
    """What the templates' placeholders stand for."""
    about = KINDS[kind]
    noun = about.article + about.noun
    return {
        "kind": kind,
        "name": names.name,
        "entry": names.given,
        "package": names.package,
        "module": names.module,
        "cls": names.camel + about.suffix,
        "noun": noun,
        "contract": about.contract,
        "description": f"{noun[0].upper()}{noun[1:]} for mcframe: {about.does}.",
        "change": what_to_change(names, kind),
        "api": API_VERSION,
        "versions": versions(),
        "source": requirement(),
        "year": str(datetime.date.today().year),
    }
