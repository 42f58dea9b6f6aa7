"""Loading of the plug-ins of `--plugin`: a module, or a local file for experiments."""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
import traceback
from dataclasses import dataclass
from importlib.metadata import packages_distributions, version
from pathlib import Path
from types import ModuleType

from mcframe.errors import Location, UserError, did_you_mean
from mcframe.files import user_path
from mcframe.registry.attribution import exits_as_errors, last_line
from mcframe.registry.global_state import UnchangedState
from mcframe.registry.plugins import NameTaken, Plugin, Registry

_SPEC = re.compile(r"(?P<where>.+?)(?::(?P<attribute>[A-Za-z_][\w.]*))?")


class NotLoaded(UserError):
    """The plug-in `spec` of `--plugin` could not be loaded."""

    def __init__(self, spec: Spec, problem: str, *, remedy: str, location: Location | None = None) -> None:
        super().__init__(f"--plugin {spec}: {problem}", remedy=remedy, location=location)
        self.spec = str(spec)


@dataclass(frozen=True)
class Spec:
    """`module[:object]` or `path/to/file.py[:object]`."""

    where: str
    attribute: str = ""

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Parse the value of `--plugin`. Raises UserError if it is neither."""
        found = _SPEC.fullmatch(text.strip())
        if not found:
            raise UserError(
                f"--plugin {text!r} names nothing",
                remedy="write --plugin module, module:object or path/to/file.py",
            )
        spec = cls(found["where"], found["attribute"] or "")
        # Absolute, so that it means the same file later and elsewhere.
        return cls(str(user_path(spec.file, "--plugin").resolve()), spec.attribute) if spec.file else spec

    @property
    def file(self) -> Path | None:
        """The file; None for a module."""
        return Path(self.where) if self.where.endswith(".py") or "/" in self.where or "\\" in self.where else None

    def __str__(self) -> str:
        return f"{self.where}:{self.attribute}" if self.attribute else self.where


def load_from_path(registry: Registry, spec: Spec) -> None:
    """Register the plug-in `spec` unless it is registered already.

    Raises:
        NotLoaded: It could not be loaded; with the line of a local file where known.
        NameTaken: It offers a name that is taken.
    """
    try:
        with exits_as_errors(), UnchangedState("its import", f"--plugin {spec}"):
            module, known = _of_file(spec, spec.file) if spec.file else _of_module(spec)
            plugin = _attribute(spec, module)
            if registry.has(plugin):
                registry.name(plugin)
            else:
                registry.add(plugin, known)
    except (NameTaken, NotLoaded):
        raise
    except UserError as error:
        raise NotLoaded(spec, error.message, remedy=error.remedy, location=error.location) from error
    except Exception as error:
        raise NotLoaded(
            spec, f"it could not be loaded: {last_line(error)}", remedy="Fix the error, or remove --plugin.",
            location=_location(error, spec),
        ) from error  # fmt: skip


def digest(code: bytes) -> str:
    """Return the SHA-256 of a file's content."""
    return hashlib.sha256(code).hexdigest()


def _of_file(spec: Spec, file: Path) -> tuple[ModuleType, Plugin]:
    try:
        code = file.read_bytes()
    except OSError as error:
        raise NotLoaded(
            spec, f"{error.strerror or error}", remedy="name the plug-in's source, a file that ends in .py"
        ) from error
    # The name depends on the content, so that a changed file becomes a new module.
    name = f"mcframe_local_{re.sub(r'[^0-9A-Za-z]', '_', file.stem)}_{digest(code)[:12]}"
    module = sys.modules.get(name)
    if module is None or module.__file__ != str(file):
        module = ModuleType(name)
        module.__file__ = str(file)
        sys.modules[name] = module  # dataclasses and annotations look up their module
        try:
            exec(compile(code, file, "exec"), module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
    return module, Plugin(str(spec), spec=str(spec), code=code, file=str(file))


def _of_module(spec: Spec) -> tuple[ModuleType, Plugin]:
    try:
        module = importlib.import_module(spec.where)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{spec.where}.".startswith(f"{error.name}."):
            raise  # the module exists; an import of its own failed
        file = Path(*spec.where.split(".")).with_suffix(".py")
        remedy = "install its package, or put its folder on PYTHONPATH"
        raise NotLoaded(
            spec, f"missing module {error.name!r}",
            remedy=f"name the file: --plugin {file}" if file.is_file() else remedy,
        ) from error  # fmt: skip
    distribution = next(iter(packages_distributions().get(spec.where.partition(".")[0], ())), "")
    return module, Plugin(str(spec), distribution, version(distribution) if distribution else "", spec=str(spec))


def _attribute(spec: Spec, module: ModuleType) -> object:
    found: object = module
    for name in filter(None, spec.attribute.split(".")):
        if not hasattr(found, name):
            there = [each for each in dir(found) if not each.startswith("_")]
            raise NotLoaded(
                spec, f"{spec.where} has no {name!r}{did_you_mean(name, there)}",
                remedy="Name a plug-in object after the colon, or remove the colon if the module is the plug-in.",
            )  # fmt: skip
        found = getattr(found, name)
    return found


def _location(error: BaseException, spec: Spec) -> Location | None:
    """Return the line of the plug-in's own file that failed."""
    if isinstance(error, SyntaxError) and error.filename:
        return Location(error.filename, error.lineno)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == spec.where]
    return Location(spec.where, lines[-1]) if lines else None
