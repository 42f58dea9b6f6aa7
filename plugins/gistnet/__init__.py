"""GistNets: maps of K children to one gist of G slots."""

from mcframe.hookspecs import Register, hookimpl
from mcframe_plugins.folder import plugins_in

mcframe_api = "0.1"
PLUGINS = plugins_in(__name__, __path__)
globals().update({each.__name__: each for each in PLUGINS.values()})


@hookimpl
def register_plugins(register: Register) -> None:
    """Register the GistNets of this folder under the names of their modules."""
    for name, factory in PLUGINS.items():
        register(name, factory)
