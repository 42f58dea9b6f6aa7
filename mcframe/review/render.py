"""Documents as Markdown with pictures as files, and as one self-contained page of HTML, from two templates."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from mcframe.errors import UserError
from mcframe.metrics.context_text import CURSOR, RAW
from mcframe.review.document import Document
from mcframe.safe_text import printable, redacted

FOLDER = "plots"
_STRIP = re.compile(rf"[{re.escape(RAW + CURSOR)}\d]+(?=  )")
"""The blocks of a working context, up to the two spaces before its numbers."""


def write(document: Document, out: Path, name: str) -> list[Path]:
    """Write `NAME.md`, `NAME.html` and `plots/` into `out`, and return the paths of the two pages.

    Raises:
        UserError: `out` cannot be written.
    """
    pages = {out / f"{name}.{end}": render(document, f"page.{end}.j2") for end in ("md", "html")}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for page, text in pages.items():
            page.write_text(text, "utf-8")
        for picture in document.pictures():
            (out / FOLDER).mkdir(exist_ok=True)
            (out / FOLDER / f"{picture.name}.png").write_bytes(picture.png)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error}", remedy="Pass another folder to --out.") from error
    return list(pages)


def render(document: Document, template: str) -> str:
    """Return a document as text."""
    environment = Environment(
        loader=PackageLoader("mcframe.review", ""),
        autoescape=template.endswith(".html.j2"),
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined,
        finalize=_without_secrets,
    )  # fmt: skip
    environment.filters |= _FILTERS
    style = Markup(files("mcframe.review").joinpath("page.css").read_text("utf-8"))
    return printable(environment.get_template(template).render(document=document, style=style, folder=FOLDER))


def _without_secrets(value: Any) -> Any:
    return redacted(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _markdown(text: str) -> str:
    """Escape what Markdown would take for markup, in one line. Underscores stay, for the names of metrics."""
    escaped = re.sub(r"([\\*`\[\]])", r"\\\1", " ".join(text.splitlines()))
    return re.sub(r"^([#>]|[-+](?=\s))", r"\\\1", re.sub(r"&(?=#?\w+;)", "&amp;", escaped).replace("<", "&lt;"))


def _fence(text: str) -> str:
    """Return the line that begins and ends a preformatted text: longer than every run of backticks in it."""
    return "`" * max(3, *(len(run) + 1 for run in ["", *re.findall(r"`+", text)]))


def _coloured(text: str) -> Markup:
    """Return strips with the blocks of each level in its colour."""
    names = {RAW: "raw", CURSOR: "cursor"}

    def blocks(strip: re.Match[str]) -> str:
        runs = [run[0] for run in re.finditer(r"(.)\1*", strip[0])]
        return "".join(f'<span class="{names.get(r[0], f"lod{min(3, ord(r[0]) - 48)}")}">{r}</span>' for r in runs)

    return Markup(_STRIP.sub(blocks, str(escape(text))))


_FILTERS: Mapping[str, Any] = {
    "markdown": _markdown,
    "cell": lambda text: _markdown(text).replace("|", r"\|"),
    "fields": lambda tile: (tile.label, tile.value, tile.note),
    "fence": _fence,
    "coloured": _coloured,
    "anchor": lambda title: re.sub(r"\W+", "-", title.lower()).strip("-"),
    "short": lambda title: title.split(": ")[-1][:1].upper() + title.split(": ")[-1][1:],
    "base64": lambda data: base64.b64encode(data).decode(),
}
