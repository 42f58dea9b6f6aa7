"""Registration of the plug-ins of a folder: one module an implementation, registered under the name of the module."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable
from typing import Any

from mcframe.hookspecs import INTERFACES, Register, hookimpl


def plugins_in(package: str, path: Iterable[str]) -> dict[str, type[Any]]:
    """Return the implementation in each module of a package, by the name of the module.

    An implementation is a class that is defined in the module and has no abstract methods of its interface. Modules
    without one hold shared code.
    """
    found: dict[str, type[Any]] = {}
    for info in pkgutil.iter_modules(path):
        module = importlib.import_module(f"{package}.{info.name}")
        for value in vars(module).values():
            concrete = inspect.isclass(value) and not inspect.isabstract(value)
            if concrete and value.__module__ == module.__name__ and issubclass(value, tuple(INTERFACES.values())):
                assert info.name not in found, f"{module.__name__}: expected one implementation, got two"
                found[info.name] = value
    return found


def register_folder(package: dict[str, Any]) -> Callable[[Register], None]:
    """Return the hook that registers the implementations of a package under the names of their modules.

    Args:
        package: The package's `globals()`. The implementations become attributes of the package.
    """
    found = plugins_in(package["__name__"], package["__path__"])
    package.update({each.__name__: each for each in found.values()})

    @hookimpl
    def register_plugins(register: Register) -> None:
        for name, factory in found.items():
            register(name, factory)

    return register_plugins
