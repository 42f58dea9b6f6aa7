"""Folder of files that can be made again: token files, trained tokenizers and measurements of text."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

from mcframe.errors import UserError
from mcframe.files import cache_dir, make_folder, replaced
from mcframe.hookspecs import PROJECT, TextSource, Tokenizer

__all__ = ["cache_dir", "cache_key", "fingerprint", "make_folder", "record_settings", "remembered"]

_SETTINGS = "_mcframe_settings"


def remembered(name: str, key: object, measure: Callable[[], Any]) -> Any:
    """Return what `measure` returned the first time for this key, from a file of the cache; both are values of JSON.

    Without a cache that can be written, it is measured each time.
    """
    file = cache_dir() / "measured" / f"{name}-{fingerprint(key)}.json"
    with suppress(OSError, ValueError):
        return json.loads(file.read_text("utf-8"))
    value = measure()
    with suppress(UserError), replaced(file) as partial:
        partial.write_text(json.dumps(value), "utf-8")
    return value


def fingerprint(value: object) -> str:
    """Return 32 hexadecimal digits that depend only on `value`, a value of JSON."""
    return blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()


def record_settings(product: object, settings: dict[str, Any]) -> None:
    """Record with a product what gin bound to its factory, for `cache_key`."""
    if hasattr(product, "__dict__"):
        vars(product)[_SETTINGS] = json.dumps(settings, sort_keys=True, default=_name)


def cache_key(product: TextSource | Tokenizer) -> str:
    """Return a string that changes with the identity, the code and the settings of a text source or tokenizer.

    Two plug-ins may state one identity, and an author may forget to change it. The code is therefore part of the key:
    the class, its package and version, and the file of a third-party class. The file's path is not, because a run
    directory holds a copy of a local plug-in.
    """
    owner = type(product)
    package, code = _origin(owner.__module__)
    return fingerprint(
        [owner.__qualname__, package, code, getattr(product, "__dict__", {}).get(_SETTINGS), product.identity]
    )


@functools.cache
def _origin(module: str) -> tuple[str, str]:
    """Return the package of a module with its version, and the hash of the module's file."""
    top = module.partition(".")[0]
    if top == PROJECT:
        return f"{module} {importlib.metadata.version(PROJECT)}", ""
    packages = importlib.metadata.packages_distributions().get(top, ())
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    try:
        code = Path(sys.modules[module].__file__ or "").read_bytes()
    except (KeyError, AttributeError, OSError):  # defined in an interpreter, or compiled in
        code = b""
    return " ".join([module, *versions]), blake2b(code, digest_size=16).hexdigest()


def _name(value: object) -> str:
    """Return the name of a function, class or type of a value that JSON does not have: equal in every process."""
    return str(getattr(value, "__qualname__", type(value).__qualname__))
