"""Objectives: loss terms that a run may add to a training step."""

from mcframe.hookspecs import Register, hookimpl
from mcframe_plugins.objective.bag_of_tokens import BagOfTokens
from mcframe_plugins.objective.z_loss import ZLoss

mcframe_api = "0.1"


@hookimpl
def register_plugins(register: Register) -> None:
    """Offer what this folder holds."""
    register("bag_of_tokens", BagOfTokens)
    register("z_loss", ZLoss)
