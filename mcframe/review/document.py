"""A document in parts that a page of Markdown and one of HTML are made from alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mcframe.review.finding import Finding


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list; numbered where the order counts."""

    items: Sequence[str]
    numbered: bool = False


@dataclass(frozen=True)
class Grid:
    """A table. Columns but the first are figures, to the right, unless `words`.

    meanings   what a row's first cell means, one a row, or nothing
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: bool = False
    meanings: Sequence[str] = ()


@dataclass(frozen=True)
class Tile:
    """A figure that is read first: what it is, its value, a word on it. mood: a severity, or nothing."""

    label: str
    value: str
    note: str = ""
    mood: str = ""


@dataclass(frozen=True)
class Tiles:
    """Tiles side by side."""

    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Verbatim:
    """Text whose characters stand below each other."""

    text: str


@dataclass(frozen=True)
class Strips:
    """Working contexts as `mcframe.metrics.context_text` draws them, a line a context."""

    text: str


@dataclass(frozen=True)
class Picture:
    """A drawn plot: `svg` for the page that holds it, `png` for a file beside Markdown; without `svg`, for both."""

    name: str
    title: str
    svg: str
    png: bytes


@dataclass(frozen=True)
class Found:
    """A finding with its plot, if it has one."""

    number: int
    finding: Finding
    picture: Picture | None


Part = Text | Items | Grid | Tiles | Verbatim | Strips | Picture | Found


@dataclass
class Section:
    """A heading and what stands under it."""

    title: str
    parts: list[Part] = field(default_factory=list)


@dataclass
class Document:
    """A title, a sentence below it, sections."""

    title: str
    subtitle: str
    sections: list[Section] = field(default_factory=list)

    def section(self, title: str, *parts: Part) -> Section:
        """Add a section at the end."""
        self.sections.append(Section(title, list(parts)))
        return self.sections[-1]

    def pictures(self) -> list[Picture]:
        """All pictures, in order."""
        parts = [part for section in self.sections for part in section.parts]
        drawn = [part.picture if isinstance(part, Found) else part for part in parts]
        return [part for part in drawn if isinstance(part, Picture)]
