"""Plug-ins that are broken on purpose: how they are written down, and the plug-in that offers them."""

from mcframe.hookspecs import API_VERSION, hookimpl
from mcframe.registry.plugins import KINDS

BREAKS = {}
"""The clause that each broken plug-in is made to break, by its registered name."""

REFERENCES = []
"""Names of the least that a plug-in of a kind can be and still keep every clause."""

_FACTORIES = {kind: {} for kind in KINDS}


def breaks(clause, kind, name=None):
    """Register the decorated factory under its own name in lower case, as one that breaks a clause."""

    def register(factory):
        known = name or factory.__name__.lower()
        assert known not in _FACTORIES[kind]
        BREAKS[f"{kind}.{known}"] = clause
        _FACTORIES[kind][known] = factory
        return factory

    return register


def keeps(kind):
    """Register the decorated factory as one that keeps every clause."""

    def register(factory):
        REFERENCES.append(f"{kind}.{factory.__name__.lower()}")
        _FACTORIES[kind][factory.__name__.lower()] = factory
        return factory

    return register


class Broken:
    """Offers all of them."""

    mcframe_api = API_VERSION

    @hookimpl
    def register_plugins(self, register):
        for kind, factories in _FACTORIES.items():
            for name, factory in factories.items():
                register(name, factory, kind=kind)
