"""A document's files: Markdown with its pictures, and the page of HTML."""

from __future__ import annotations

from pathlib import Path

from mcframe.errors import UserError
from mcframe.review.document import Document
from mcframe.review.html_page import as_html
from mcframe.review.markdown import FOLDER, as_markdown


def write(document: Document, out: Path, name: str) -> list[Path]:
    """Write `NAME.md`, `NAME.html` and `plots/` into `out`. Returns the two pages.

    Raises UserError where `out` cannot be written.
    """
    pages = [out / f"{name}.md", out / f"{name}.html"]
    try:
        out.mkdir(parents=True, exist_ok=True)
        pages[0].write_text(as_markdown(document), "utf-8")
        pages[1].write_text(as_html(document), "utf-8")
        for picture in document.pictures():
            (out / FOLDER).mkdir(exist_ok=True)
            (out / FOLDER / f"{picture.name}.png").write_bytes(picture.png)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error}", remedy="name another folder with --out DIR") from error
    return pages
