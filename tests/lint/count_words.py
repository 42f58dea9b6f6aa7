"""Count the words of the documentation that is typed by hand.

    python tests/lint/count_words.py [MAX]

Counts README.md, CONTRIBUTING.md and docs/**/*.md as `wc -w` does. Skips docs/sample_review and generated text, that is
parts between `<!-- NAME -->` and `<!-- end of NAME -->` and pages with "Do not edit this page." at the end of a line.
The second column skips the bars and rules of tables. Exit code 1 if the total of the first column is above MAX.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
GENERATED_PAGE = re.compile(r"Do not edit this page\.$", re.MULTILINE)
GENERATED_PART = re.compile(r"<!-- (?P<name>[\w ]+) -->.*?<!-- end of (?P=name) -->", re.DOTALL)


def typed_pages(root: Path) -> list[Path]:
    """Return the pages that people write, README first."""
    below = sorted(page for page in (root / "docs").rglob("*.md") if "sample_review" not in page.parts)
    return [root / "README.md", root / "CONTRIBUTING.md", *below]


def count(text: str) -> tuple[int, int]:
    """Return the words of a page's typed text: all, and those with a letter or a digit."""
    if GENERATED_PAGE.search(text):
        return 0, 0
    words = GENERATED_PART.sub(" ", text).split()
    return len(words), sum(bool(re.search(r"\w", word)) for word in words)


def main() -> int:
    """Print a row per page and the total, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("max", nargs="?", type=int, help="upper bound of the total")
    bound = parser.parse_args().max
    counts = {page: count(page.read_text("utf-8")) for page in typed_pages(ROOT)}
    for page, (words, without_bars) in counts.items():
        print(f"{words:6} {without_bars:6}  {page.relative_to(ROOT)}")
    total, total_without_bars = (sum(column) for column in zip(*counts.values(), strict=True))
    print(f"{total:6} {total_without_bars:6}  total")
    if bound is not None and total > bound:
        print(f"typed documentation: expected at most {bound} words, got {total}. Shorten the longest pages.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
