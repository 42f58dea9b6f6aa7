"""The checks of tests/lint find what they are for."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.lint import check_words, count_lines


@pytest.mark.parametrize(
    ("name", "text", "hit"),
    [
        ("docs/x.md", "The twin is trained too.", "twin"),
        ("gin/x.gin", "# Nobody reads this", "Nobody"),
        ("mcframe/x.py", "from a import TelemetrySink", "TelemetrySink"),
        ("mcframe/x.py", '"""What a run is."""', "What"),
        ("mcframe/x.py", 'def f():\n    """How many."""', "How"),
    ],
)
def test_replaced_words_are_found(name: str, text: str, hit: str) -> None:
    assert [found for _, found, _ in check_words.hits_of(name, text, check_words.patterns())] == [hit]


def test_plain_words_pass() -> None:
    text = '"""Return a whole number in place."""\nwhich = baseline_nll'
    assert not list(check_words.hits_of("x.py", text, check_words.patterns()))


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ('"""Text."""\n\n# comment\nx = 1\n', 1),
        ("x = (\n    1,\n)\n", 3),
        ('def f():\n    """Text.\n\n    More.\n    """\n', 1),
    ],
)
def test_lines_of_code_are_counted(source: str, lines: int) -> None:
    assert count_lines.code_lines(source) == lines


@pytest.mark.parametrize(("bound", "code"), [("a,b=2", 1), ("a=2", 0), ("a,b=3", 0)])
def test_too_many_lines_fail(bound: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, source in (("a", "x = 1\ny = 2\n"), ("b", "x = 1\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file.py").write_text(source, "utf-8")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["count_lines.py", "--at-most", bound])
    assert count_lines.main() == code
