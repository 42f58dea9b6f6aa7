"""Tables for terminals of any width."""

from __future__ import annotations

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

_FOLDED = 16
"""Characters of a longer word, such as a path, that stay on one line."""

_FRAME = 3
"""Characters of a column's border and padding."""


class FittedTable(Table):
    """A table that becomes a list of its rows where its words do not fit between the borders."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table, or a line a cell."""
        cells = [[_text(cell, console) for cell in (column.header, *column.cells)] for column in self.columns]
        needed = [
            max(_needed(cell, complete=column.no_wrap) for cell in own)
            for column, own in zip(self.columns, cells, strict=True)
        ]
        left = options.max_width - sum(needed) - _FRAME * len(needed) - 1
        if left >= 0:
            longest = [max(_needed(cell, complete=True) for cell in own) for own in cells]
            # Rich would shrink the widest columns, through their words.
            for column, least, most in zip(self.columns, needed, longest, strict=True):
                column.width = least + min(left, most - least)
                left -= column.width - least
            yield from super().__rich_console__(console, options)
            return
        if self.title:
            yield _text(self.title, console)
        headers = [_text(column.header, console) for column in self.columns]
        for row in zip(*(column.cells for column in self.columns), strict=True):
            first, *rest = (_text(cell, console) for cell in row)
            first.stylize("bold")
            if first.plain:
                yield first
            for header, cell in zip(headers[1:], rest, strict=True):
                if cell.plain:
                    yield Text.assemble("  ", header, ": " if header.plain else "", cell)
        if self.caption:
            yield _text(self.caption, console)


def _text(cell: RenderableType, console: Console) -> Text:
    return cell.copy() if isinstance(cell, Text) else console.render_str(str(cell))


def _needed(cell: Text, *, complete: bool) -> int:
    """Return the characters of the longest line, or of the longest word up to `_FOLDED`."""
    if complete:
        return max((len(line) for line in cell.plain.splitlines()), default=0)
    return max((min(len(word), _FOLDED) for word in cell.plain.split()), default=0)
