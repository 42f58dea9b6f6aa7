"""Diagnosis of lines that gin cannot parse."""

from __future__ import annotations

import ast
import difflib
import io
import re
import tokenize

from mcframe.errors import UserError

_BARE = re.compile(r"[A-Za-z_~./][\w~./: -]*")
_BINDING = re.compile(r"[\w./]+\s*=")
_CONSTANTS = {"true": "True", "false": "False", "null": "None", "none": "None"}
_OPENING, _CLOSING = ("(", "[", "{"), (")", "]", "}")
_GENERIC = "Write one binding a line: name.parameter = value, with strings in quotes."


def diagnose(error: str, text: str, number: int) -> tuple[UserError, int]:
    """Return the error for gin source that does not parse at line `number`, and the line of its cause."""
    lines = text.splitlines()
    line = lines[number - 1] if number <= len(lines) else ""
    # gin reads the text after an unclosed bracket as its content, up to the next binding or the end of the file.
    if "EOF in multi-line statement" in error or (error.startswith("Expected ','") and _BINDING.match(line)):
        opened = _unclosed("\n".join(lines[:number]))
        if opened:
            problem = f"a bracket is never closed: {lines[opened - 1].strip()}"
            return UserError(problem, remedy="Close it."), opened
    problem, remedy = explain(error, line)
    return UserError(f"{problem}: {line.strip()}", remedy=remedy), number


def explain(error: str, line: str) -> tuple[str, str]:
    """Return the problem of a line and its remedy. `error` is gin's own message, the fallback."""
    left, equals, right = (part.strip() for part in line.partition("="))
    if include := re.match(r"\s*include\s+([^'\"\s#]\S*)", line):
        return "the file of an include is written in quotes", f"Write include {include[1]!r}."
    if not equals:
        if re.match(r"[\w./]+\s*:\s*\S", line.strip()):
            return "a value is bound with '=', not with ':'", "Write name.parameter = value."
        return _first_line(error), _GENERIC
    right = _without_comment(right)
    if not right:
        return f"{left} has no value", f"Write the value after {left} =."
    if right.startswith("@") and "(" in right:
        return (
            f"{right}: a reference takes no arguments",
            "Bind each argument on a line of its own: name.parameter = 4.",
        )
    if _is_unterminated(right):
        return f"the string {right} has no closing quote", "Close the quote on the same line."
    if _is_expression(right):
        return f"{right} is an expression, and gin does not calculate", "Write the result."
    if right.lstrip("+-").lower() in ("nan", "inf", "infinity"):
        return f"{right} is not a value", "Write a finite number."
    return _bare_word(left, right, error) or (_first_line(error), _GENERIC)


def _unclosed(text: str) -> int | None:
    """Return the line (from 1) of the first bracket that is opened and never closed."""
    opened: list[int] = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.string in _OPENING:
                opened.append(token.start[0])
            elif token.string in _CLOSING and opened:
                opened.pop()
    except tokenize.TokenError:  # the end of the file, where gin reports the missing bracket
        pass
    return opened[0] if opened else None


def _bare_word(left: str, right: str, error: str) -> tuple[str, str] | None:
    """Return problem and remedy of a string without quotes: the value itself, or one word within a list."""
    found = re.search(r"Failed to parse token '([A-Za-z_]\w*)'", error)
    word = right if _BARE.fullmatch(right) else found.group(1) if found else None
    if word is None:
        return None
    constant = _CONSTANTS.get(word.lower())
    if constant is None and difflib.get_close_matches(word, ["True", "False", "None"], cutoff=0.8):
        constant = difflib.get_close_matches(word, ["True", "False", "None"])[0]
    if constant:
        return f"{word} is not a value (did you mean {constant}?)", f"Write {right.replace(word, constant)}."
    quoted = f"{left} = {word!r}" if word == right else repr(word)
    return f"{word} is a string without quotes", f"Quote it: {quoted}"


def _is_unterminated(value: str) -> bool:
    try:
        ast.parse(value, mode="eval")
    except (SyntaxError, ValueError) as error:  # before Python 3.11.4 a ValueError for null characters
        return "unterminated" in str(error)
    return False


def _is_expression(value: str) -> bool:
    try:
        tree = ast.parse(value, mode="eval")
    except (SyntaxError, ValueError):
        return False
    # `a/b` and `a-b` are far more often a path or a name without quotes than arithmetic.
    operations = (ast.BinOp, ast.BoolOp, ast.Compare, ast.Call, ast.IfExp, ast.Lambda, ast.ListComp)
    nodes = list(ast.walk(tree))
    return any(isinstance(node, operations) for node in nodes) and not (
        _BARE.fullmatch(value) and not any(isinstance(node, ast.Call) for node in nodes)
    )


def _without_comment(value: str) -> str:
    """Return the value without a trailing comment; a # within quotes stays."""
    kept = ""
    try:
        for token in tokenize.generate_tokens(io.StringIO(value).readline):
            if token.type == tokenize.COMMENT:
                return value[: token.start[1]].rstrip()
            kept = value
    except (tokenize.TokenError, SyntaxError):
        pass
    return kept or value


def _first_line(error: str) -> str:
    lines = error.strip().splitlines() or [""]
    return lines[0].partition(": <ast.")[0].rstrip(".") or "this does not parse"
