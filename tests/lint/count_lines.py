"""Count lines of code without docstrings, comments and blank lines, per folder.

    python tests/lint/count_lines.py [DEPTH] [--at-most FOLDER,FOLDER=LINES ...]

Exit code 1 if the folders of a bound hold more lines, or if a file has more than 400 lines in all.
"""

from __future__ import annotations

import argparse
import ast
import io
import subprocess
import sys
import tokenize
from collections import Counter
from pathlib import Path

LAYOUT = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
}  # fmt: skip

LONGEST_FILE = 400


def code_lines(source: str) -> int:
    """Return how many lines of `source` hold code."""
    documented: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(
            node
        ):
            first = node.body[0]
            documented.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in LAYOUT:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - documented)


def main() -> int:
    """Print a count per folder and the longest file, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("depth", nargs="?", type=int, default=1)
    parser.add_argument("--at-most", action="append", default=[], metavar="FOLDERS=LINES")
    options = parser.parse_args()
    lines, sizes = Counter[Path](), dict[str, int]()
    for name in subprocess.check_output(["git", "ls-files", "*.py"], text=True).splitlines():
        path = Path(name)
        if path.exists():
            source = path.read_text("utf-8")
            lines[path] = code_lines(source)
            sizes[name] = len(source.splitlines())
    counts = Counter[str]()
    for path, count in lines.items():
        counts["/".join(path.parts[:-1][: options.depth])] += count
    for folder, count in sorted(counts.items()):
        print(f"{count:6}  {folder}")
    ordered = sorted(sizes.values())
    longest = max(sizes, key=lambda name: sizes[name])
    print(f"files: {len(sizes)}, median {ordered[len(ordered) // 2]} lines, longest {sizes[longest]}: {longest}")
    failed = sizes[longest] > LONGEST_FILE
    for bound in options.at_most:
        folders, _, most = bound.partition("=")
        total = sum(count for path, count in lines.items() if path.parts[0] in folders.split(","))
        print(f"{folders}: {total} lines of code, at most {most}")
        failed |= total > int(most)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
