"""Options of `mcframe/run.py`, which `mcframe run` checks and passes on."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from mcframe.errors import UserError
from mcframe.files import user_path


class Parser(argparse.ArgumentParser):
    """A parser that raises a UserError in place of printing its usage."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        raise UserError(message, remedy="Run mcframe run --help for the options.")


def arguments(*parents: argparse.ArgumentParser) -> Parser:
    """Return the parser of the options, and of those of `parents`."""
    parser = Parser(
        prog="mcframe run" if parents else "deepspeed mcframe/run.py",
        description="Train a MegaContext language model from gin files.",
        parents=parents,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--gin", action="append", required=True, type=_path("--gin"), metavar="FILE",
        help="a gin file; may be repeated",
    )  # fmt: skip
    parser.add_argument("--set", action="append", default=[], metavar="BINDING", help="such as 'run.seed = 1'")
    parser.add_argument("--baseline", action="store_true", help="train the file's plain baseline, without variants")
    parser.add_argument(
        "--drop-baseline",
        action="store_true",
        help="train the file's drop baseline, without GistNet",
    )
    parser.add_argument(
        "--run-dir", type=_path("--run-dir"), metavar="DIR", help="where to write; default: runs/NAME of the gin file"
    )
    parser.add_argument(
        "--resume", default="auto", type=_resume, metavar="auto|never|DIR",
        help="auto: resume if the run directory has a checkpoint; never: start again; DIR: resume from there",
    )  # fmt: skip
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="PLUGIN",
        help="a plug-in to add to those installed: module[:object] or path/to/file.py[:object]; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--no-plugin", action="append", default=[], metavar="NAME", help="a plug-in, or a package of some, to skip"
    )
    parser.add_argument("--strict-plugins", action="store_true", help="fail if any plug-in is broken")
    parser.add_argument("--trust", action="store_true", help="resume a run whose folder has links out of it")
    parser.add_argument(
        "--profile", action="store_true", help="profile steps 4 to 6: a trace in RUN/profile, and a table"
    )
    parser.add_argument("--traceback", action="store_true", help="show the traceback of an error")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the launcher passes it
    return parser


def launcher_arguments() -> Parser:
    """Return the parser of the options of `mcframe run` that are not passed on."""
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument(
        "--ranks", type=_ranks, metavar="N", help="processes on this machine; default: one a GPU, or one"
    )
    parser.add_argument(
        "--launcher", default="", metavar="OPTIONS", help="more options for the deepspeed launcher, in one string"
    )
    return parser


def _path(option: str) -> Callable[[str], Path]:
    return functools.partial(user_path, name=option)


def _resume(text: str) -> str:
    return text if text in ("auto", "never") else str(user_path(text, "--resume"))


def _ranks(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--ranks: expected a number from 1, got {text}", remedy="Pass --ranks 1 or more.")
    return int(text)
