"""Callbacks: actions at named moments of training."""

from mcframe.hookspecs import Register, hookimpl
from mcframe_plugins.callback.early_stopping import EarlyStopping

mcframe_api = "0.1"


@hookimpl
def register_plugins(register: Register) -> None:
    """Register the callbacks of this folder."""
    register("early_stopping", EarlyStopping)
