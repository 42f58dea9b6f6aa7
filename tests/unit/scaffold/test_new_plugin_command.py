"""`mcframe new-plugin`, and its packages under their own tests."""

from __future__ import annotations

import importlib
import os
import site
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mcframe.cli.app import app
from mcframe.config.run_config import load_run_config
from mcframe.scaffold.kinds import TEMPLATES
from mcframe.testing.kinds import class_suffix
from mcframe.training.build import build_model
from tests.support.forked_ranks import CONTEXT
from tests.support.linking import link


def new_plugin(*arguments: str) -> tuple[int, str]:
    """Return exit code and output."""
    result = CliRunner().invoke(app, ["new-plugin", *arguments], env={"COLUMNS": "200"})
    return result.exit_code, result.output


def test_prints_files_and_next_commands(tmp_path: Path) -> None:
    code, output = new_plugin("last-child", "--kind", "gistnet", "--dir", str(tmp_path / "new folder"))
    assert code == 0, output
    folder = tmp_path / "new folder" / "mcframe-last-child"
    for file in (file for file in folder.rglob("*") if file.is_file()):
        assert file.name in output
    assert "LastChildGistNet.weights in mcframe_last_child.py" in output
    commands = [line.strip() for line in output.splitlines()[-3:]]
    assert commands[0] == f"cd '{folder}'"
    assert [command.split(" -m ")[1] for command in commands[1:]] == ["pip install -e '.[test]'", "tox"]


@pytest.mark.parametrize(
    ("arguments", "detail"),
    [
        (("mine", "--kind", "gisnet"), "did you mean gistnet?"),
        (("mean", "--kind", "gistnet"), "gistnet.mean exists"),
        (("My Net", "--kind", "gistnet"), "my-net"),
    ],
)
def test_mistake_ends_with_code_2_and_no_file(tmp_path: Path, arguments: tuple[str, ...], detail: str) -> None:
    code, output = new_plugin(*arguments, "--dir", str(tmp_path))
    assert code == 2
    assert detail in " ".join(output.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def run_tests(folder: Path, arguments: list[str], output: Path) -> None:
    """Run pytest in this process with a folder that counts as installed, and write what it prints to a file."""
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    os.chdir(folder)
    site.addsitedir(str(folder))
    sys.exit(pytest.main(arguments))


def test_new_packages_pass_their_own_tests(packages: dict[str, Path], tmp_path: Path) -> None:
    """All kinds in one process; `tox -e scaffold` installs them one by one and runs tox in each."""
    for folder in packages.values():
        link(folder, tmp_path)
    arguments = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib", "-rA", "--tb=short"]
    tests = [str(folder / "tests") for folder in packages.values()]
    output = tmp_path / "output.txt"
    process = CONTEXT.Process(target=run_tests, args=(tmp_path, [*arguments, *tests], output))
    process.start()
    process.join()
    text = output.read_text("utf-8")
    assert process.exitcode == 0, text[-6000:]
    for kind in TEMPLATES:
        assert f"TestProbe{class_suffix(kind)}::test_no_requirement_is_disabled" in text


@pytest.fixture
def installed(packages: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the packages importable in this process."""
    for folder in packages.values():
        link(folder, tmp_path)
        monkeypatch.syspath_prepend(folder)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield
    for name in [name for name in sys.modules if name.startswith("mcframe_probe_")]:
        del sys.modules[name]


@pytest.mark.usefixtures("installed")
def test_gin_files_select_the_new_plugins(packages: dict[str, Path]) -> None:
    for kind, folder in packages.items():
        (gin,) = folder.glob("*.gin")
        loaded = load_run_config([gin], [])
        assert loaded.registry.broken == []
        assert [key for key, value in loaded.config.as_dict().items() if f"@{kind}.probe" in str(value)], kind
        build_model(loaded.run_config, loaded.run_config.tokenizer().vocab_size)
