"""Modules that every rank imports: the fork server of tests/support/forked_ranks.py loads them once."""

import os
from importlib.metadata import entry_points

from mcframe.training.engine import prepare_environment

_environment = dict(os.environ)
prepare_environment()  # before DeepSpeed is imported

import deepspeed.ops.adam  # noqa: E402
import deepspeed.runtime.zero.stage3  # noqa: E402, F401
import torch._dynamo  # noqa: E402, F401 - every optimizer imports it at its first step, for 3 s
from torch.utils.tensorboard import SummaryWriter  # noqa: E402, F401

import mcframe.cli.train  # noqa: E402, F401

for _plugin in entry_points(group="mcframe.plugins"):
    _plugin.load()
os.environ.clear()
os.environ.update(_environment)
