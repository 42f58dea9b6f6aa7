"""Modules that ranks import: the fork server of tests/support/forked_ranks.py loads them once."""

import gc
import os
from importlib import import_module
from importlib.metadata import entry_points

from mcframe.training.engine import prepare_environment

_environment = dict(os.environ)
prepare_environment()  # before DeepSpeed is imported

import deepspeed  # noqa: E402

_LOADED = (
    "mcframe.cli.train",
    "torch._dynamo",  # every optimizer imports it at its first step, for 3 s
    "torch.utils.tensorboard",
    "deepspeed.ops.adam",
    "deepspeed.runtime.zero.stage3",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # at ZeRO 1 to 3, with every optimizer; it imports torch._inductor
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.comm.mori",
    "deepspeed.ops.op_builder.all_ops",
    "rensa",
    "scipy.optimize",
    "scipy.sparse.csgraph",
    "scipy.special",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
)
for _module in _LOADED:
    import_module(_module)
_ = deepspeed.ops.__compatible_ops__  # probes every op with a compiler
for _plugin in entry_points(group="mcframe.plugins"):
    _plugin.load()
os.environ.clear()
os.environ.update(_environment)
gc.freeze()  # a rank would otherwise visit, and so copy, every object of these modules at each full collection
