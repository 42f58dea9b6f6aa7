"""A document as Markdown, its pictures as files beside it."""

from __future__ import annotations

from mcframe.review.document import Document, Found, Grid, Items, Part, Picture, Text, Tiles

FOLDER = "plots"


def as_markdown(document: Document) -> str:
    """The page. Pictures are looked for in the folder `plots` beside it."""
    lines = [f"# {document.title}", "", document.subtitle, ""]
    for section in document.sections:
        lines += [f"## {section.title}", ""]
        for part in section.parts:
            lines += [_part(part), ""]
    return "\n".join(lines)


def _part(part: Part) -> str:
    if isinstance(part, Text):
        return _plain(part.text)
    if isinstance(part, Items):
        return "\n".join(f"{f'{i}.' if part.numbered else '-'} {_plain(item)}" for i, item in enumerate(part.items, 1))
    if isinstance(part, Grid):
        return _grid(part)
    if isinstance(part, Tiles):
        return _grid(Grid(("", "", ""), [(tile.label, tile.value, tile.note) for tile in part.tiles], words=True))
    if isinstance(part, Picture):
        return f"![{_plain(part.title)}]({FOLDER}/{part.name}.png)"
    if isinstance(part, Found):
        return _found(part)
    return f"```\n{part.text}\n```"


def _found(part: Found) -> str:
    finding = part.finding
    lines = [
        f"### {part.number}. {_plain(finding.title)}",
        "",
        f"Severity: **{finding.severity}**. Rule: `{finding.rule}`.",
        "",
    ]
    lines += [f"- {_plain(evidence)}" for evidence in finding.evidence]
    if part.picture is not None:
        lines += ["", _part(part.picture)]
    return "\n".join(lines)


def _grid(grid: Grid) -> str:
    columns, rows = [*grid.columns], [[*row] for row in grid.rows]
    ruler = ["---", *("---" if grid.words else "---:" for _ in columns[1:])]
    if grid.meanings:
        columns, ruler = [*columns, "meaning"], [*ruler, "---"]
        rows = [[*row, meaning] for row, meaning in zip(rows, grid.meanings, strict=True)]
    rows = [columns, ruler, *rows]
    return "\n".join("| " + " | ".join(_plain(cell).replace("|", "\\|") for cell in row) + " |" for row in rows)


def _plain(text: str) -> str:
    """What Markdown would take for markup, as it stands. Names of metrics keep their underscores."""
    return text.replace("\\", "\\\\").replace("*", "\\*").replace("<", "&lt;").replace("`", "\\`")
