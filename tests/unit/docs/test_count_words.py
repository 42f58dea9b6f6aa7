"""tests/lint/count_words.py counts typed text alone, and fails above its bound."""

from __future__ import annotations

import pytest

from tests.lint import count_words


def test_generated_text_is_skipped() -> None:
    page = "one two\n<!-- rules -->\nthree\n<!-- end of rules -->\n| four | --- |\n"
    assert count_words.count(page) == (7, 3)
    assert count_words.count("# Settings\n\nGenerated. Do not edit this page.\n") == (0, 0)


@pytest.mark.parametrize(("bound", "code"), [("5", 1), ("6", 0)])
def test_a_total_above_the_bound_fails(bound, code, tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "docs" / "sample_review").mkdir(parents=True)
    for name, text in {"README.md": "a b", "CONTRIBUTING.md": "c", "docs/x.md": "d e f"}.items():
        (tmp_path / name).write_text(text, "utf-8")
    (tmp_path / "docs" / "sample_review" / "review.md").write_text("g", "utf-8")
    monkeypatch.setattr(count_words, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["count_words.py", bound])
    assert count_words.main() == code
    assert "     6      6  total" in capsys.readouterr().out
