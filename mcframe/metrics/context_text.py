"""Working contexts as text: one character a block, and the number of entries and gists."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from mcframe.context.context_tree import ContextTree

RAW = "·"
CURSOR = "|"
_STYLES = ("dim", "bold cyan", "bold magenta", "bold yellow")


def strip(focus_row: Sequence[int], tree: ContextTree) -> str:
    """Return a context as text, for example `··1··11····|····  1831 of 2048 entries, 7 gists`.

    Args:
        focus_row: [blocks], the LOD of each block. `·` is LOD0, a digit the LOD of a gist, `|` the cursor.
        tree: the tree of the window.

    Raises:
        ValueError: the row does not fit the tree.
    """
    return colored(focus_row, tree).plain


def colored(focus_row: Sequence[int], tree: ContextTree) -> Text:
    """Return `strip` with a colour for each LOD."""
    counts = legend(focus_row, tree)
    cursor = tree.cursor // tree.block_size  # the block that contains or follows the cursor
    text = Text()
    for block, lod in enumerate([*focus_row, None]):
        if block == cursor:
            text.append(CURSOR, style="bold red")
        if lod is not None:
            text.append(_character(lod), style=_style(lod))
    return text.append(f"  {counts}")


def legend(focus_row: Sequence[int], tree: ContextTree) -> str:
    """Return the entries of a context, the tokens of the window, and the gists: `1831 of 2048 entries, 7 gists`.

    Raises:
        ValueError: the row has another number of blocks, an unknown LOD, or covers a node in part.
    """
    if len(focus_row) != tree.blocks:
        raise ValueError(f"focus: expected {tree.blocks} blocks, got {len(focus_row)}")
    if not all(0 <= lod <= tree.levels for lod in focus_row):
        raise ValueError(f"focus: expected LODs from 0 to {tree.levels}, got {list(focus_row)}")
    counts = []
    for lod in range(1, tree.levels + 1):
        nodes, rest = divmod(sum(level == lod for level in focus_row), tree.span(lod - 1))
        if rest:
            raise ValueError(f"focus: expected complete nodes at LOD{lod}, got {list(focus_row)}")
        counts.append(nodes)
    gists = sum(counts)
    return f"{tree.length(tuple(counts))} of {tree.window} entries, {gists} {'gist' if gists == 1 else 'gists'}"


def key(tree: ContextTree) -> Text:
    """Return the line that explains each character of a strip."""
    parts = [Text.assemble((RAW, _STYLES[0]), f" {tree.block_size} raw tokens")]
    for lod in range(1, tree.levels + 1):
        parts.append(Text.assemble((_character(lod), _style(lod)), f" in a gist of {tree.span(lod)} tokens"))
    parts.append(Text.assemble((CURSOR, "bold red"), " cursor"))
    return Text("   ").join(parts)


def _character(lod: int) -> str:
    if lod == 0:
        return RAW
    return str(lod) if lod < 10 else "+"


def _style(lod: int) -> str:
    return _STYLES[min(lod, len(_STYLES) - 1)]
