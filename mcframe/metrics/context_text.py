"""A working context in one line: a character a block, and what it comes to."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from mcframe.context.context_tree import ContextTree

RAW = "·"
CURSOR = "|"
_STYLES = ("dim", "bold cyan", "bold magenta", "bold yellow")


def strip(focus_row: Sequence[int], tree: ContextTree) -> str:
    """One context as text, for example `··1··11····|····  1831 of 2048 entries, 7 gists`.

    focus_row [blocks] holds the LOD of each block: `·` is raw, a digit the LOD of a gist, `|` the cursor.
    Raises ValueError where the row does not fit the tree.
    """
    return colored(focus_row, tree).plain


def colored(focus_row: Sequence[int], tree: ContextTree) -> Text:
    """`strip` for a terminal: each LOD in a colour of its own."""
    counted = legend(focus_row, tree)
    cursor = tree.cursor // tree.block_size  # the block that the cursor stands in or before
    picture = Text()
    for block, lod in enumerate(focus_row):
        if block == cursor:
            picture.append(CURSOR, style="bold red")
        picture.append(_mark(lod), style=_STYLES[min(lod, len(_STYLES) - 1)])
    if cursor == tree.blocks:
        picture.append(CURSOR, style="bold red")
    return picture.append(f"  {counted}")


def legend(focus_row: Sequence[int], tree: ContextTree) -> str:
    """Entries of a context, out of the window's tokens, and its gists: `1831 of 2048 entries, 7 gists`.

    Raises ValueError where the row has another number of blocks, an LOD is unknown or covers no whole nodes.
    """
    if len(focus_row) != tree.blocks:
        raise ValueError(f"a focus of {len(focus_row)} blocks for a window of {tree.blocks}")
    if not all(0 <= lod <= tree.levels for lod in focus_row):
        raise ValueError(f"a focus with an LOD outside 0..{tree.levels}: {list(focus_row)}")
    counts = []
    for lod in range(1, tree.levels + 1):
        nodes, rest = divmod(sum(level == lod for level in focus_row), tree.span(lod - 1))
        if rest:
            raise ValueError(f"the blocks at LOD{lod} make no whole nodes: {list(focus_row)}")
        counts.append(nodes)
    gists = sum(counts)
    noun = "gist" if gists == 1 else "gists"
    return f"{tree.length(tuple(counts))} of {tree.window} entries, {gists} {noun}"


def key(tree: ContextTree) -> Text:
    """The line that explains the picture: what each character stands for."""
    parts = [Text.assemble((RAW, _STYLES[0]), f" {tree.block_size} raw tokens")]
    for lod in range(1, tree.levels + 1):
        style = _STYLES[min(lod, len(_STYLES) - 1)]
        parts.append(Text.assemble((_mark(lod), style), f" in a gist of {tree.span(lod)} tokens"))
    parts.append(Text.assemble((CURSOR, "bold red"), " cursor"))
    return Text("   ").join(parts)


def _mark(lod: int) -> str:
    if lod == 0:
        return RAW
    return str(lod) if lod < 10 else "+"
