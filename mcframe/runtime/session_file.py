"""A session's focus as a file, and as a list of the nodes in its working context.

The file is a cache: without it, or if it is damaged, a session chooses its focus from the history.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.files import replaced
from mcframe.runtime.commit_log import checksum
from mcframe.runtime.covered_window import CoveredWindow
from mcframe.runtime.refocus import Focus
from mcframe.runtime.session_config import SessionConfig

STATE = "session.json"
"""Name of the file with the focus, in the folder of the history."""


@dataclass(frozen=True)
class Span:
    """A node of a working context, or raw tokens in a row.

    Attributes:
        lod: Level of detail.
        first: Its first token in the history.
        tokens: Tokens that it covers.
        change: 1 if the last refocus expanded it, -1 if it collapsed it, else 0.
    """

    lod: int
    first: int
    tokens: int
    change: int


def write_state(folder: Path, tokens: int, config: SessionConfig, focus: Focus | None) -> None:
    """Write the focus of a session, None if it was not chosen yet.

    Args:
        folder: The folder of the history.
        tokens: N, tokens of the history.
        config: Settings of the session.
        focus: The focus.

    Raises:
        UserError: The file cannot be written.
    """
    state = json.dumps({"tokens": tokens, "config": asdict(config), "focus": None if focus is None else to_json(focus)})
    with replaced(folder / STATE) as path:
        path.write_text(json.dumps({"state": state, "sum": checksum(state.encode())}))


def read_state(
    folder: Path, tokens: int, config: SessionConfig, tree: ContextTree, device: torch.device
) -> Focus | None:
    """Return the focus that was saved with so many tokens and these settings; None if there is none.

    Args:
        folder: The folder of the history.
        tokens: N, tokens of the history.
        config: Settings of the session.
        tree: Its tree; the window does not matter.
        device: Device of the focus.
    """
    try:
        saved = json.loads((folder / STATE).read_bytes())
        intact = checksum(saved["state"].encode()) == saved["sum"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # missing, cut off, or of an older version
        return None
    state = json.loads(saved["state"]) if intact else {}
    if state.get("focus") is None or (state["tokens"], state["config"]) != (tokens, asdict(config)):
        return None
    return from_json(state["focus"], tree, device)


def to_json(focus: Focus) -> dict[str, Any]:
    """Return a focus as JSON values; lists of blocks are pairs of a value and its repetitions."""
    window = focus.window
    return {
        "tokens": window.tokens,
        "dropped": window.dropped,
        "focus": _runs(window.focus[0].tolist()),
        "age": _runs(focus.age[0].tolist()),
        "expanded": focus.expanded,
        "collapsed": focus.collapsed,
    }


def from_json(state: dict[str, Any], tree: ContextTree, device: torch.device) -> Focus:
    """Return the focus of `to_json`.

    Args:
        state: The JSON values.
        tree: The session's tree; its window does not matter.
        device: Device of the focus.

    Raises:
        ValueError: The lists do not have a value for each block.
    """
    covered = state["tokens"] - state["dropped"]
    tree = replace(tree, window=covered, tail=min(tree.tail, covered))
    focus, age = (_blocks(state[name], tree.blocks, device) for name in ("focus", "age"))
    window = CoveredWindow(tree, state["dropped"], focus)
    return Focus(window, age, tuple(state["expanded"]), tuple(state["collapsed"]))


def spans(focus: Focus, tokens: int) -> list[Span]:
    """Return the working context of a history of N tokens as spans, in order."""
    window = focus.window
    more = tokens - window.tokens
    context = window.with_tail(more, more)
    first, lods = window.history_index(context.start)[0].tolist(), context.lod[0].tolist()
    size = window.tree.block_size
    found: list[Span] = []
    changes = dict.fromkeys(focus.expanded, 1) | dict.fromkeys(focus.collapsed, -1)
    for start, lod in dict.fromkeys(zip(first, lods, strict=True)):
        span, change = window.tree.span(lod), changes.get(start // size, 0)
        last = found[-1] if found else None
        joined = last is not None and not last.lod and not lod and last.first + last.tokens == start
        if last is not None and joined and last.change == change:
            found[-1] = replace(last, tokens=last.tokens + 1)
        else:
            found.append(Span(lod, start, span, change))
    return found


def _runs(values: Sequence[int]) -> list[tuple[int, int]]:
    return [(value, len(list(group))) for value, group in groupby(values)]


def _blocks(runs: Sequence[Sequence[int]], count: int, device: torch.device) -> Tensor:
    def each() -> Iterator[int]:
        for value, repetitions in runs:
            yield from [value] * repetitions

    values = list(each())
    if len(values) != count:
        raise ValueError(f"expected {count} blocks, got {len(values)}")
    return torch.tensor([values], dtype=torch.int64, device=device)
