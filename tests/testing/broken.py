"""Plug-ins that are broken on purpose: how they are written down, and the plug-in objects that offer them."""

from mcframe.hookspecs import API_VERSION, hookimpl

BREAKS = {}
"""The clause that each broken plug-in is made to break, by its registered name."""

_FACTORIES = {"gistnet": {}, "lensnet": {}, "allocator": {}, "variants": {}}


def breaks(clause, kind, name=None):
    """Register the decorated factory under its own name in lower case, as one that breaks a clause."""

    def register(factory):
        known = name or factory.__name__.lower()
        assert f"{kind}.{known}" not in BREAKS
        BREAKS[f"{kind}.{known}"] = clause
        _FACTORIES[kind][known] = factory
        return factory

    return register


class Broken:
    """Offers all of them but the one whose plug-in states no API version."""

    mcframe_api = API_VERSION

    @hookimpl
    def register_gistnets(self, register):
        for name, factory in _FACTORIES["gistnet"].items():
            register(name, factory)

    @hookimpl
    def register_lensnets(self, register):
        for name, factory in _FACTORIES["lensnet"].items():
            register(name, factory)

    @hookimpl
    def register_allocators(self, register):
        for name, factory in _FACTORIES["allocator"].items():
            register(name, factory)

    @hookimpl
    def register_variants(self, register):
        for name, factory in _FACTORIES["variants"].items():
            register(name, factory)
