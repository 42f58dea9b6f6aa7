"""Check that replaced words and names stand nowhere in the repository.

    python tests/lint/check_words.py [PATH ...] [--list]

Prints one line per hit with `--list`, else a count per top-level folder. Exit code 1 if there is a hit.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
SUFFIXES = {".py", ".md", ".gin", ".toml", ".tmpl", ".ini", ".cfg", ".yml", ".yaml", ".txt", ".css", ".html", ".j2"}
SKIPPED = ("tests/lint/", "CHANGELOG.md", "LICENSE", "mcframe/renamed.py")
"""Files that must hold old words: the list itself, history, and the table of renamed bindings."""


def patterns() -> list[tuple[re.Pattern[str], str]]:
    """Return every pattern with its replacement. Words match in any case, names exactly."""
    table = tomllib.loads((HERE / "words.toml").read_text("utf-8"))
    words = [(re.compile(rf"(?<![\w-])(?:{word})(?![\w-])", re.IGNORECASE), to) for word, to in table["words"].items()]
    return words + [(re.compile(rf"(?<!\w)(?:{name})(?!\w)"), to) for name, to in table["names"].items()]


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
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
            for pattern, replacement in known:
                for match in pattern.finditer(line):
                    hits["/".join(path.parts[:2])] += 1
                    if options.list:
                        print(f"{name}:{number}: {match[0]!r}: write {replacement}")
    for folder, count in sorted(hits.items()):
        print(f"{count:6}  {folder}")
    print(f"{sum(hits.values())} replaced words or names")
    return 1 if hits else 0


if __name__ == "__main__":
    sys.exit(main())
