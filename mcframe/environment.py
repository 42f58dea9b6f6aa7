"""The environment variables of a rank, and ports. Imports no torch."""

from __future__ import annotations

import os
import socket

from mcframe.errors import UserError

_OF_A_RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}


def free_port() -> int:
    """Return a port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def prepare_rank() -> None:
    """Set the variables of a single rank, unless a launcher has set those of one of several.

    Raises:
        UserError: A part of the variables is set, or one is not a number.
    """
    if "RANK" not in os.environ and os.environ.get("WORLD_SIZE", "1") == "1":
        os.environ.update({name: os.environ.get(name, value) for name, value in _ALONE.items()})
        os.environ.setdefault("MASTER_PORT", str(free_port()))
    remedy = "Start the run with `mcframe run`, or unset RANK and WORLD_SIZE."
    if missing := [name for name in _OF_A_RANK if not os.environ.get(name)]:
        raise UserError(f"the environment of a rank misses {', '.join(missing)}", remedy=remedy)
    for name in _OF_A_RANK:
        if name != "MASTER_ADDR" and not os.environ[name].isdecimal():
            raise UserError(f"{name}: expected a number from 0, got {os.environ[name]!r}", remedy=remedy)
    if int(os.environ["RANK"]) >= int(os.environ["WORLD_SIZE"]):
        world = os.environ["WORLD_SIZE"]
        raise UserError(f"RANK: expected a number below WORLD_SIZE = {world}, got {os.environ['RANK']}", remedy=remedy)
