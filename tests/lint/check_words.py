"""Check that replaced words and names stand nowhere in the repository, and how docstrings begin.

    python tests/lint/check_words.py [PATH ...] [--list]

Prints one line per hit with `--list`, else a count per top-level folder. Exit code 1 if there is a hit.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
SUFFIXES = {".py", ".md", ".gin", ".toml", ".tmpl", ".ini", ".cfg", ".yml", ".yaml", ".txt", ".css", ".html", ".j2"}
SKIPPED = ("tests/lint/", "tests/unit/docs/test_lint_checks.py", "CHANGELOG.md", "LICENSE", "mcframe/renamed.py")
"""Files that must hold old words: the list itself, history, and the table of renamed bindings."""

QUESTION_WORDS = {"What", "Which", "Whose", "Who", "How", "Where", "When", "Why"}


def patterns() -> list[tuple[re.Pattern[str], str]]:
    """Return every pattern with its replacement. Words match in any case, names exactly."""
    table = tomllib.loads((HERE / "words.toml").read_text("utf-8"))
    words = [(re.compile(rf"(?<![\w-])(?:{word})(?![\w-])", re.IGNORECASE), to) for word, to in table["words"].items()]
    return words + [(re.compile(rf"(?<!\w)(?:{name})(?!\w)"), to) for name, to in table["names"].items()]


def question_docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and first word of each docstring that begins with a question word."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = (ast.get_docstring(node) or "-").split()[0]
            if first in QUESTION_WORDS:
                yield node.body[0].lineno, first


def hits_of(name: str, text: str, known: list[tuple[re.Pattern[str], str]]) -> Iterator[tuple[int, str, str]]:
    """Yield line, hit and replacement of each hit in a file."""
    for number, line in enumerate(text.splitlines(), start=1):
        for pattern, replacement in known:
            for match in pattern.finditer(line):
                yield number, match[0], replacement
    if name.endswith(".py"):
        for number, word in question_docstrings(text):
            yield number, word, "a verb phrase (Return the ...) or a noun phrase"


def main() -> int:
    """Print the hits and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="*", default=["."])
    parser.add_argument("--list", action="store_true", help="print every hit with file and line")
    options = parser.parse_args()
    listed = subprocess.check_output(["git", "ls-files", *options.paths], text=True).splitlines()
    known, hits = patterns(), Counter[str]()
    for name in listed:
        path = Path(name)
        if path.suffix not in SUFFIXES or name.startswith(SKIPPED) or not path.exists():
            continue
        for number, hit, replacement in hits_of(name, path.read_text("utf-8"), known):
            hits["/".join(path.parts[:2])] += 1
            if options.list:
                print(f"{name}:{number}: {hit!r}: write {replacement}")
    for folder, count in sorted(hits.items()):
        print(f"{count:6}  {folder}")
    print(f"{sum(hits.values())} replaced words or names")
    return 1 if hits else 0


if __name__ == "__main__":
    sys.exit(main())
