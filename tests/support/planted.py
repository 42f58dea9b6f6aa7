"""Registration of plug-ins that are broken on purpose."""

from mcframe.hookspecs import API_VERSION, hookimpl

BREAKS = {}
"""The requirement that each broken plug-in breaks, by its registered name."""

CONFORMING = []
"""Names of minimal plug-ins that keep every requirement."""

_FACTORIES = []


def _register(factory, kind, name=None):
    name = name or factory.__name__.lower()
    assert (kind, name) not in [(kind, name) for kind, name, _ in _FACTORIES]
    _FACTORIES.append((kind, name, factory))
    return f"{kind}.{name}"


def breaks(requirement, kind, name=None):
    """Register the decorated factory, by default under its name in lower case, as one that breaks a requirement."""

    def register(factory):
        BREAKS[_register(factory, kind, name)] = requirement
        return factory

    return register


def keeps(kind):
    """Register the decorated factory as one that keeps every requirement."""

    def register(factory):
        CONFORMING.append(_register(factory, kind))
        return factory

    return register


class Broken:
    """A plug-in with all of them."""

    mcframe_api = API_VERSION

    @hookimpl
    def register_plugins(self, register):
        for kind, name, factory in _FACTORIES:
            register(name, factory, kind=kind)
