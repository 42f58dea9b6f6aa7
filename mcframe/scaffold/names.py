"""Names of a new package, its module and its class, made from the name of the plug-in."""

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
    """All forms of a name such as `last-child`.

    Attributes:
        entry_point: With hyphens: the entry point, and the argument of `--no-plugin`.
        name: The name in gin files after the kind: `last_child`.
    """

    entry_point: str
    name: str

    @classmethod
    def of(cls, text: str, kind: str) -> Names:
        """Return the names of a plug-in. The kind is dropped from the gin name: `last-gistnet` is `gistnet.last`.

        Raises:
            UserError: The text makes no name of a package, a module or a gin file.
        """
        if not _NAME.fullmatch(text):
            likely = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-0123456789")
            raise UserError(
                f"{text!r}: expected lower-case letters, digits and single hyphens, a letter first",
                remedy=f"write, for example, {likely or 'my-net'}",
            )
        if re.match(r"mcframe[-_]?", text):
            rest = re.sub(r"^mcframe[-_]?", "", text) or "my-net"
            raise UserError(f"{text!r}: the package gets the prefix mcframe by itself", remedy=f"write {rest}")
        parts = re.split("[-_]", text)
        own = [part for part in parts if part != kind]
        if not own or not own[0][0].isalpha():
            raise UserError(f"{text!r} names only the kind", remedy=f"name the behaviour, for example my-{kind}")
        if keyword.iskeyword("_".join(own)):
            raise UserError(f"{'_'.join(own)!r} is a Python keyword", remedy=f"write, for example, my-{text}")
        return cls("-".join(parts), "_".join(own))

    @property
    def package(self) -> str:
        """Name of the package: `mcframe-last-child`."""
        return f"mcframe-{self.entry_point}"

    @property
    def module(self) -> str:
        """Name of the module: `mcframe_last_child`."""
        return f"mcframe_{self.entry_point.replace('-', '_')}"

    @property
    def camel(self) -> str:
        """Prefix of the class: `LastChild`."""
        return "".join(part.capitalize() for part in self.name.split("_"))


def check_free(names: Names, kind: str, registry: Registry) -> None:
    """Raise UserError if an installed plug-in, package or module has one of the names."""
    taken = registry.implementations[kind].get(names.name)
    if taken:
        raise UserError(
            f"{kind}.{names.name} exists: {taken.origin}",
            remedy=f"choose another name, for example with your group as prefix: mylab-{names.entry_point}",
        )
    try:
        installed = f"package {names.package} {version(names.package)}"
    except PackageNotFoundError:
        installed = f"module {names.module}" if find_spec(names.module) else ""
    if installed:
        raise UserError(
            f"{installed} is already installed",
            remedy=f"choose another name, or run pip uninstall {names.package}",
        )
