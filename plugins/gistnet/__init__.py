"""GistNets: maps of K children to one gist of G slots."""

from mcframe.hookspecs import Register, hookimpl
from mcframe_plugins.gistnet.contextual import ContextualGistNet
from mcframe_plugins.gistnet.mean import MeanGistNet
from mcframe_plugins.gistnet.multihead import MultiheadGistNet
from mcframe_plugins.gistnet.transformer import TransformerGistNet

mcframe_api = "0.1"


@hookimpl
def register_plugins(register: Register) -> None:
    """Register the GistNets of this folder."""
    register("contextual", ContextualGistNet)
    register("mean", MeanGistNet)
    register("multihead", MultiheadGistNet)
    register("transformer", TransformerGistNet)
