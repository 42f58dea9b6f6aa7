"""What `mcframe new-plugin` writes: whole, tidy, of the public API alone, and overwriting nothing."""

from __future__ import annotations

import ast
import json
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest

import mcframe.testing
from mcframe.errors import UserError
from mcframe.registry import plugins as registry
from mcframe.scaffold import origin
from mcframe.scaffold.kinds import KINDS
from mcframe.scaffold.names import Names
from mcframe.scaffold.package import render, write

ROOT = Path(__file__).parents[3]
PUBLIC = ("mcframe.hookspecs", "mcframe.context", "mcframe.errors", "mcframe.testing")
EXAMPLE = ROOT / "plugins" / "spectral"


def test_every_kind_has_templates_and_a_contract() -> None:
    assert set(KINDS) == set(registry.KINDS)
    for about in KINDS.values():
        assert hasattr(mcframe.testing, about.contract), about.contract


def test_templates_are_in_the_wheel() -> None:
    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-data"]
    for file in (ROOT / "mcframe" / "scaffold" / "templates").rglob("*"):
        if file.is_file():
            assert any(file in (ROOT / "mcframe").glob(pattern) for pattern in shipped["mcframe"]), file
            assert not file.name.startswith("."), "wheels lose hidden files"


def test_the_worked_example_is_a_package_of_its_own() -> None:
    """Outside our wheel, of the shape that new packages have, and with the gin file that its README shows."""
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    assert not [name for name in ours if "spectral" in name]
    assert not (EXAMPLE / "__init__.py").exists(), "it would be a part of mcframe_plugins"
    written = render(Names.of("spectral", "gistnet"), "gistnet")
    assert [path for path in written if not (EXAMPLE / path).exists()] == [".github/workflows/tests.yml"]
    for path in ("tox.ini", "toxfile.py", ".gitignore"):
        assert (EXAMPLE / path).read_text("utf-8") == written[path]
    assert (EXAMPLE / "spectral.gin").read_text("utf-8") in (EXAMPLE / "README.md").read_text("utf-8")


def test_nothing_is_left_to_fill_in(packages: dict[str, Path]) -> None:
    for folder in packages.values():
        for file in folder.rglob("*"):
            if file.is_file() and file.name != "tests.yml" and "__pycache__" not in file.parts:
                text = file.read_text("utf-8")
                assert "$" not in text, file
                assert text.endswith("\n"), file
                assert not text.endswith("\n\n"), file


def test_the_author_finds_the_function_to_change(packages: dict[str, Path]) -> None:
    for kind, folder in packages.items():
        (module,) = folder.glob("mcframe_*.py")
        functions = {
            each.name: each
            for each in ast.walk(ast.parse(module.read_text("utf-8")))
            if isinstance(each, ast.FunctionDef)
        }
        marked = [
            name for name, each in functions.items() if "the function to change" in (ast.get_docstring(each) or "")
        ]
        assert marked == [KINDS[kind].function]
        assert f".{marked[0]} in {module.name}" in (folder / "README.md").read_text("utf-8")


def test_packages_import_nothing_but_the_public_api(packages: dict[str, Path]) -> None:
    for folder in [*packages.values(), EXAMPLE]:
        for file in [*folder.glob("*.py"), *folder.glob("tests/*.py")]:
            for each in ast.walk(ast.parse(file.read_text("utf-8"))):
                if isinstance(each, ast.ImportFrom) and (each.module or "").split(".")[0] in (
                    "mcframe",
                    "mcframe_plugins",
                ):
                    assert str(each.module).startswith(PUBLIC), f"{file}: {each.module}"
                if isinstance(each, ast.Import):
                    assert not any(name.name.startswith("mcframe") for name in each.names), file


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    content = render(Names.of("mine", "gistnet"), "gistnet")
    taken = tmp_path / "mcframe-mine"
    taken.write_text("a file of the user's", "utf-8")
    with pytest.raises(UserError, match="exists already; nothing was written"):
        write(taken, content)
    assert taken.read_text("utf-8") == "a file of the user's"
    taken.unlink()
    taken.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="exists already"):
        write(taken, content)
    assert list(tmp_path.iterdir()) == [taken]


def test_half_a_package_is_never_left(tmp_path: Path) -> None:
    content = {"one.py": "", "bad\0name.py": ""}
    with pytest.raises(ValueError, match="null"):
        write(tmp_path / "mcframe-mine", content)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("version", "fits"),
    [("0.1.0", ">=0.1,<0.2"), ("0.12.3.dev1", ">=0.12,<0.13"), ("1.4.2", ">=1.4,<2"), ("unknown", "")],
)
def test_the_version_that_a_package_needs(version: str, fits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin, "__version__", version)
    assert origin.versions() == fits


@pytest.mark.parametrize(
    ("recorded", "asked"),
    [
        (
            {"url": "https://example.org/m.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "mcframe @ git+https://example.org/m.git@abc",
        ),
        ({"url": "file:///somebody/mcframe", "dir_info": {"editable": True}}, f"mcframe{origin.versions()}"),
        (None, f"mcframe{origin.versions()}"),
    ],
)
def test_where_other_machines_get_mcframe_from(
    recorded: dict[str, object] | None, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(distribution("mcframe"))
    monkeypatch.setattr(kind, "read_text", lambda self, name: json.dumps(recorded) if recorded else None)
    assert origin.requirement() == asked
