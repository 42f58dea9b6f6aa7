"""The optimizers that come with mcframe."""

from mcframe.hookspecs import Register, hookimpl
from mcframe_plugins.optimizer.adamw import AdamW
from mcframe_plugins.optimizer.muon import Muon

mcframe_api = "0.1"


@hookimpl
def register_plugins(register: Register) -> None:
    """Register the optimizers of this folder."""
    register("adamw", AdamW)
    register("muon", Muon)
