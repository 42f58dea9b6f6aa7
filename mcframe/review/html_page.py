"""A document as one page of HTML that needs nothing else: no script, no font, no picture from elsewhere."""

from __future__ import annotations

import base64
import html
import re
from importlib.resources import files

from mcframe.metrics.context_text import CURSOR, RAW
from mcframe.review.document import Document, Found, Grid, Items, Part, Picture, Section, Strips, Text, Tiles

_STRIP = re.compile(rf"[{re.escape(RAW + CURSOR)}\d]+(?=  )")
"""The blocks of a working context, up to the two blanks before its figures."""


def as_html(document: Document) -> str:
    """The page."""
    style = files("mcframe.review").joinpath("page.css").read_text("utf-8")
    anchors = "".join(f'<a href="#{_anchor(s)}">{_text(_short(s.title))}</a>' for s in document.sections)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'  # or browsers ask the server for one
        f"<title>{_text(document.title)}</title><style>{style}</style></head>\n<body>\n"
        f'<header><h1>{_text(document.title)}</h1><p class="soft">{_text(document.subtitle)}</p>'
        f"<nav>{anchors}</nav></header>\n<main>\n"
        + "\n".join(_section(section) for section in document.sections)
        + "\n</main></body></html>\n"
    )


def _short(title: str) -> str:
    name = title.split(": ")[-1]
    return name[0].upper() + name[1:]


def _anchor(section: Section) -> str:
    return re.sub(r"\W+", "-", section.title.lower()).strip("-")


def _section(section: Section) -> str:
    """What is said stands beside the plots where the page is wide, above them where it is not; large pictures below."""
    first = [_part(part) for part in section.parts if isinstance(part, Tiles)]
    said = [_part(part) for part in section.parts if not isinstance(part, Picture | Tiles)]
    drawn = [_part(part) for part in section.parts if isinstance(part, Picture) and part.svg]
    sheets = [_part(part) for part in section.parts if isinstance(part, Picture) and not part.svg]
    body = f'<div class="said">{"".join(said)}</div>' if said else ""
    if drawn:
        body += f'<div class="plots">{"".join(drawn)}</div>'
    kind = "both" if said and drawn else "one"
    body = f'{"".join(first)}<div class="{kind}">{body}</div>{"".join(sheets)}'
    return f'<section id="{_anchor(section)}"><h2>{_text(section.title)}</h2>{body}</section>'


def _part(part: Part) -> str:
    if isinstance(part, Text):
        return f"<p>{_text(part.text)}</p>"
    if isinstance(part, Items):
        tag = "ol" if part.numbered else "ul"
        return f"<{tag}>" + "".join(f"<li>{_text(item)}</li>" for item in part.items) + f"</{tag}>"
    if isinstance(part, Grid):
        return _grid(part)
    if isinstance(part, Tiles):
        return _tiles(part)
    if isinstance(part, Picture):
        return _picture(part)
    if isinstance(part, Found):
        return _found(part)
    if isinstance(part, Strips):
        return f'<pre class="strips">{_STRIP.sub(lambda found: _blocks(found[0]), _text(part.text))}</pre>'
    return f"<pre>{_text(part.text)}</pre>"


def _picture(picture: Picture) -> str:
    caption = f"<figcaption>{_text(picture.title)}</figcaption>"
    if picture.svg:
        return f"<figure>{caption}{picture.svg}</figure>"
    data = base64.b64encode(picture.png).decode()
    image = f'<img alt="{_text(picture.title)}" src="data:image/png;base64,{data}">'
    return f'<figure class="sheet">{caption}<div class="wide">{image}</div></figure>'


def _blocks(strip: str) -> str:
    """Neighbouring blocks of one level in one span of its colour."""
    runs = [found[0] for found in re.finditer(r"(.)\1*", strip)]
    names = {RAW: "raw", CURSOR: "cursor"}
    return "".join(f'<span class="{names.get(run[0], f"lod{min(3, ord(run[0]) - 48)}")}">{run}</span>' for run in runs)


def _tiles(tiles: Tiles) -> str:
    cells = [
        f'<div class="tile {tile.mood}"><span class="soft">{_text(tile.label)}</span><b>{_text(tile.value)}</b>'
        f'<span class="soft">{_text(tile.note)}</span></div>'
        for tile in tiles.tiles
    ]
    return f'<div class="tiles">{"".join(cells)}</div>'


def _found(part: Found) -> str:
    finding = part.finding
    evidence = "".join(f"<li>{_text(line)}</li>" for line in finding.evidence)
    picture = _part(part.picture) if part.picture is not None else ""
    return (
        f'<article class="finding {finding.severity}"><div><h3>{part.number}. {_text(finding.title)}</h3>'
        f'<span class="tag">{finding.severity}</span> <span class="soft">rule {_text(finding.rule)}</span>'
        f"<ul>{evidence}</ul></div>{picture}</article>"
    )


def _grid(grid: Grid) -> str:
    head = "".join(f"<th>{_text(column)}</th>" for column in grid.columns)
    meanings = grid.meanings or [""] * len(grid.rows)
    rows = "".join(
        "<tr>" + "".join(_cell(cell, meaning if not at else "") for at, cell in enumerate(row)) + "</tr>"
        for row, meaning in zip(grid.rows, meanings, strict=True)
    )
    kind = "words" if grid.words else "figures" if grid.meanings else "plain"
    return f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _cell(text: str, meaning: str) -> str:
    below = f'<span class="meaning">{_text(meaning)}</span>' if meaning else ""
    return f"<td>{_text(text)}{below}</td>"


def _text(text: str) -> str:
    return html.escape(text)
