"""The compiler that DeepSpeed's ops need at their first start, and torch.compile for every graph."""

from __future__ import annotations

import os
import shutil
import traceback
from importlib.util import find_spec

import torch

from mcframe.errors import UserError

INSTALL = "Install g++ (apt-get install g++) and ninja (pip install ninja)"


def check_compiler() -> str | None:
    """Return what is missing on this machine to build an op of DeepSpeed, or None."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"a C++ compiler ({compiler} was not found)"
    if shutil.which("ninja") is None:
        return "ninja"
    return None


def check_inductor(setting: bool | str) -> None:
    """Raise UserError if a compiler is missing that `run.compile` needs."""
    if setting == "eager":
        return
    missing = None
    if shutil.which(compiler := os.environ.get("CXX", "g++")) is None:
        missing = f"a C++ compiler ({compiler} was not found)"
    elif torch.cuda.is_available() and find_spec("triton") is None:
        missing = "Triton"
    if missing:
        raise UserError(
            f"run.compile needs {missing}",
            remedy="Install g++ (apt-get install g++), on a GPU also Triton (pip install triton), or set run.compile = "
            "False.",
            binding="run.compile",
        )


def op_not_built(error: Exception, optimizer: str) -> UserError | None:
    """Return the message for an op of DeepSpeed that an optimizer could not build, or None for other errors."""
    missing = check_compiler()
    files = [frame.filename.replace("\\", "/") for frame in traceback.extract_tb(error.__traceback__)]
    if missing is None or not any("/deepspeed/ops/" in file for file in files):
        return None
    return UserError(
        f"optimizer {optimizer}: DeepSpeed's implementation needs {missing} to be built at its first start",
        remedy=f"{INSTALL}, or set `fused` of the optimizer to False for torch's implementation.",
    )
