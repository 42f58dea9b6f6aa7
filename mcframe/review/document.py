"""The parts of a document, which `render` writes as Markdown and as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mcframe.review.finding import Finding


class Part:
    """Anything in a section. The templates choose by `kind`."""

    @property
    def kind(self) -> str:
        """Name of the class, in lower case."""
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Text(Part):
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Items(Part):
    """A list."""

    items: Sequence[str]
    numbered: bool = False


@dataclass(frozen=True)
class Grid(Part):
    """A table: a column of words and columns of numbers, or words alone; `meanings` has an explanation for each row."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: bool = False
    meanings: Sequence[str] = ()


@dataclass(frozen=True)
class Tile:
    """A prominent number with its label and a note; `severity` colours it."""

    label: str
    value: str
    note: str = ""
    severity: str = ""


@dataclass(frozen=True)
class Tiles(Part):
    """Tiles side by side."""

    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Verbatim(Part):
    """Preformatted text; with `strips`, working contexts, coloured by LOD."""

    text: str
    strips: bool = False


@dataclass(frozen=True)
class Picture(Part):
    """A plot: `svg` for HTML, `png` for a file next to the Markdown. Without `svg`, HTML has the PNG."""

    name: str
    title: str
    svg: str
    png: bytes


@dataclass(frozen=True)
class Found(Part):
    """A finding with its plot."""

    number: int
    finding: Finding
    picture: Picture | None


@dataclass
class Section:
    """A heading with its parts."""

    title: str
    parts: list[Part] = field(default_factory=list)


@dataclass
class Document:
    """A title, a sentence below it, sections."""

    title: str
    subtitle: str
    sections: list[Section] = field(default_factory=list)

    def section(self, title: str, *parts: Part | None) -> None:
        """Append a section; None stands for a part that is missing."""
        self.sections.append(Section(title, [part for part in parts if part is not None]))

    def pictures(self) -> list[Picture]:
        """Return all pictures, in order."""
        parts = [part for section in self.sections for part in section.parts]
        drawn = [part.picture if isinstance(part, Found) else part for part in parts]
        return [part for part in drawn if isinstance(part, Picture)]
