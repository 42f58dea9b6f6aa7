"""Count lines of code without docstrings, comments and blank lines, per folder.

python tests/lint/count_lines.py [DEPTH]
"""

from __future__ import annotations

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


def main() -> None:
    """Print a count per folder, and the longest file."""
    depth = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    counts, sizes = Counter[str](), dict[str, int]()
    for name in subprocess.check_output(["git", "ls-files", "*.py"], text=True).splitlines():
        path = Path(name)
        if path.exists():
            source = path.read_text("utf-8")
            counts["/".join(path.parts[:-1][:depth])] += code_lines(source)
            sizes[name] = len(source.splitlines())
    for folder, count in sorted(counts.items()):
        print(f"{count:6}  {folder}")
    ordered = sorted(sizes.values())
    longest = max(sizes, key=lambda name: sizes[name])
    print(f"files: {len(sizes)}, median {ordered[len(ordered) // 2]} lines, longest {sizes[longest]}: {longest}")


if __name__ == "__main__":
    main()
