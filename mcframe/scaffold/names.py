"""From the name that a user gives a plug-in to those of its package, module and class; and what is wrong with it."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from mcframe.errors import UserError
from mcframe.registry.plugins import Registry

_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")


@dataclass(frozen=True)
class Names:
    """`last-child` everywhere it is used.

    given  as it was typed, with hyphens: the entry point, and what `--no-plugin` takes
    name   what gin files call it, behind its kind: `last_child`
    """

    given: str
    name: str

    @classmethod
    def of(cls, text: str, kind: str) -> Names:
        """Raises UserError where it would make no package, module or gin name.

        gin says the kind anyway, so a plug-in's own name does not: `last-gistnet` is `gistnet.last`.
        """
        if not _NAME.fullmatch(text):
            likely = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-0123456789")
            raise UserError(
                f"{text!r} cannot name a plug-in: lower-case letters, digits and single hyphens, a letter first",
                remedy=f"for example {likely or 'my-net'}",
            )
        if re.match(r"mcframe[-_]?", text):
            rest = re.sub(r"^mcframe[-_]?", "", text) or "my-net"
            raise UserError(
                f"{text!r} begins with mcframe, which the package's name gets anyway", remedy=f"call it {rest}"
            )
        parts = re.split("[-_]", text)
        own = [part for part in parts if part != kind]
        if not own or not own[0][0].isalpha():
            raise UserError(
                f"{text!r} says only what kind of plug-in it is", remedy=f"say what it does, for example my-{kind}"
            )
        if keyword.iskeyword("_".join(own)):
            raise UserError(f"{'_'.join(own)!r} is a word of Python's own", remedy=f"call it, for example, my-{text}")
        return cls("-".join(parts), "_".join(own))

    @property
    def package(self) -> str:
        """`mcframe-last-child`."""
        return f"mcframe-{self.given}"

    @property
    def module(self) -> str:
        """`mcframe_last_child`."""
        return f"mcframe_{self.given.replace('-', '_')}"

    @property
    def camel(self) -> str:
        """`LastChild`."""
        return "".join(part.capitalize() for part in self.name.split("_"))


def check_free(names: Names, kind: str, registry: Registry) -> None:
    """Raises UserError where an installed plug-in, package or module has one of the names already."""
    taken = registry.implementations[kind].get(names.name)
    if taken:
        raise UserError(
            f"there is a {kind}.{names.name} already, of {taken.origin}",
            remedy=f"choose another name, for example your group's in front of it: mylab-{names.given}",
        )
    try:
        installed = f"the package {names.package} {version(names.package)}"
    except PackageNotFoundError:
        installed = f"a module {names.module}" if find_spec(names.module) else ""
    if installed:
        raise UserError(
            f"{installed} is installed already",
            remedy=f"choose another name, or remove it first: pip uninstall {names.package}",
        )
