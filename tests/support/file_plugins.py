"""A plug-in in one file, its discovery, and products with attributed calls."""

from __future__ import annotations

import pytest

from mcframe.errors import UserError
from mcframe.registry.attribution import attribute_calls
from mcframe.registry.discovery import PluginOptions, discover
from mcframe.registry.plugins import Plugin, Registered, Registry

NET = '''
    """A plug-in in one file."""

    from dataclasses import dataclass
    from typing import Literal

    from torch import nn

    from mcframe.hookspecs import GistNet, ModelShape, hookimpl

    @dataclass
    class Held:
        by: "int" = 1

    class Last(GistNet):
        """The last child."""

        def __init__(self, shape: ModelShape, *, bias: bool = False, mode: Literal["a", "b"] = "a"):
            super().__init__()
            self.head = nn.Linear(shape.width, shape.width, bias=bias)

        def forward(self, children, lod):
            return self.head(children[:, :, -1:])

    @hookimpl
    def register_plugins(register):
        register("{name}", Last)
'''


def with_plugin(*named: str) -> Registry:
    return discover(PluginOptions(named=named))


def refusal(*named: str, **others: object) -> UserError:
    with pytest.raises(UserError) as caught:
        discover(PluginOptions(named=named, **others))  # type: ignore[arg-type]
    return caught.value


def attributed_product(registry, kind, name, product):
    """Register a plug-in with one implementation and return its product with attributed calls."""
    entry = Registered(kind, name, type(product), name, "lab", "2.0")
    registry.plugins[name] = Plugin(name, "lab", "2.0")
    registry.implementations[kind][name] = entry
    attribute_calls(product, entry)
    return product
