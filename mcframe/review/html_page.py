"""A document as one page of HTML that needs nothing else: no script, no font, no picture from elsewhere."""

from __future__ import annotations

import html

from mcframe.review.document import Document, Found, Grid, Items, Part, Picture, Text

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2127; --paper: #ffffff; --soft: #5b6570; --line: #d8dde3; --card: #f6f8fa;
  --high: #b3261e; --medium: #a15c00; --low: #2f6f4f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --paper: #14181c; --soft: #9aa5b1; --line: #343c45;
  --card: #1c2228; --high: #ff8a80; --medium: #ffb74d; --low: #81c995; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 92rem; padding: 1rem clamp(.8rem, 3vw, 3rem) 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: clamp(1.4rem, 4vw, 2rem); line-height: 1.2; margin: 1rem 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.02rem; line-height: 1.4; margin: 0 0 .3rem; }
p, li { max-width: 75ch; }
ul, ol { padding-left: 1.4rem; }
.soft { color: var(--soft); }
.wide { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .93rem; margin: .5rem 0; }
th, td { padding: .28rem .9rem .28rem 0; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
  overflow-wrap: normal; }
td { white-space: nowrap; }
th:first-child, td:first-child, .words th, .words td { text-align: left; }
.words td { white-space: normal; overflow-wrap: anywhere; min-width: 7rem; }
pre { background: var(--card); padding: .7rem; overflow-x: auto; font: .85rem/1.35 ui-monospace, monospace; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: 1rem; }
figure { margin: .6rem 0; max-width: 42rem; }
figcaption { font-size: .9rem; color: var(--soft); }
svg { width: 100%; height: auto; display: block; color: var(--ink); }
.finding { background: var(--card); border-left: 5px solid var(--low); padding: .8rem 1rem; margin: 1rem 0; }
.finding.high { border-color: var(--high); } .finding.medium { border-color: var(--medium); }
.tag { font-size: .85rem; font-weight: 600; } .high .tag { color: var(--high); }
.medium .tag { color: var(--medium); } .low .tag { color: var(--low); }
@media (min-width: 70rem) {
  .finding { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 34rem); gap: 0 2rem; }
  .finding figure { margin: 0; } }
@media print { :root { --ink: #000; --paper: #fff; --soft: #444; --line: #bbb; --card: #fff; }
  body { font-size: 10.5pt; }
  .finding, figure, table, pre { break-inside: avoid; } h2, h3 { break-after: avoid; } .wide, pre { overflow: visible; }
  pre { white-space: pre-wrap; } }
"""


def as_html(document: Document) -> str:
    """The page."""
    body = [f"<h1>{_text(document.title)}</h1>", f'<p class="soft">{_text(document.subtitle)}</p>']
    for section in document.sections:
        body.append(f"<section><h2>{_text(section.title)}</h2>{_parts(section.parts)}</section>")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'  # or browsers ask the server for one
        f"<title>{_text(document.title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _parts(parts: list[Part]) -> str:
    """Neighbouring pictures stand side by side where the page is wide."""
    out: list[str] = []
    beside = False
    for part in parts:
        picture = isinstance(part, Picture)
        if picture != beside:
            out.append('<div class="plots">' if picture else "</div>")
        beside = picture
        out.append(_part(part))
    return "\n".join([*out, *(["</div>"] if beside else [])])


def _part(part: Part) -> str:
    if isinstance(part, Text):
        return f"<p>{_text(part.text)}</p>"
    if isinstance(part, Items):
        tag = "ol" if part.numbered else "ul"
        return f"<{tag}>" + "".join(f"<li>{_text(item)}</li>" for item in part.items) + f"</{tag}>"
    if isinstance(part, Grid):
        return _grid(part)
    if isinstance(part, Picture):
        return f"<figure>{part.svg}<figcaption>{_text(part.title)}</figcaption></figure>"
    if isinstance(part, Found):
        return _found(part)
    return f"<pre>{_text(part.text)}</pre>"


def _found(part: Found) -> str:
    finding = part.finding
    evidence = "".join(f"<li>{_text(line)}</li>" for line in finding.evidence)
    picture = _part(part.picture) if part.picture is not None else ""
    return (
        f'<article class="finding {finding.severity}"><div><h3>{part.number}. {_text(finding.title)}</h3>'
        f'<span class="tag">{finding.severity}</span> <span class="soft">· {_text(finding.rule)}</span>'
        f"<ul>{evidence}</ul></div>{picture}</article>"
    )


def _grid(grid: Grid) -> str:
    head = "".join(f"<th>{_text(column)}</th>" for column in grid.columns)
    rows = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in grid.rows)
    kind = ' class="words"' if grid.words else ""
    return f'<div class="wide"><table{kind}><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _text(text: str) -> str:
    return html.escape(text)
