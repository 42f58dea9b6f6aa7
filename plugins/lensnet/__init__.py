"""LensNets: a score in [-1, 1] for every entry before the cursor."""

from mcframe.hookspecs import Register, hookimpl
from mcframe_plugins.lensnet.mlp import MLPLensNet
from mcframe_plugins.lensnet.recency import RecencyLensNet
from mcframe_plugins.lensnet.surprise import SurpriseLensNet
from mcframe_plugins.lensnet.transformer import TransformerLensNet

mcframe_api = "0.1"


@hookimpl
def register_plugins(register: Register) -> None:
    """Register the LensNets of this folder."""
    register("mlp", MLPLensNet)
    register("recency", RecencyLensNet)
    register("surprise", SurpriseLensNet)
    register("transformer", TransformerLensNet)
