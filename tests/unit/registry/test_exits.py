"""Exceptions of plug-ins that would end the process: each names the plug-in. A Ctrl-C of the user passes."""

import runpy
import signal
from asyncio import CancelledError

import pytest
import torch

from mcframe.config.loader import Config
from mcframe.config.run_config import Loaded
from mcframe.errors import Interrupt, UserError, raise_interrupt
from mcframe.hookspecs import Tokenizer
from mcframe.registry.attribution import PluginCall, UnexpectedExit, attributed, explain
from mcframe.registry.discovery import PluginOptions, discover
from mcframe.registry.load_from_path import NotLoaded
from mcframe.registry.plugins import Plugin, Registry
from tests.support.file_plugins import attributed_product

EXITS = [SystemExit(0), SystemExit("bye"), KeyboardInterrupt(), GeneratorExit(), CancelledError()]


@pytest.fixture
def our_handler():
    """Handle Ctrl-C as the commands do."""
    before = signal.signal(signal.SIGINT, raise_interrupt)
    yield
    signal.signal(signal.SIGINT, before)


class Exits(Tokenizer):
    identity = "exits"

    def __init__(self, error):
        self.error = error

    def encode_batch(self, texts):
        yield from texts
        raise self.error

    def decode(self, ids):
        raise self.error

    def byte_lengths(self):
        return torch.ones(1)


@pytest.mark.parametrize("error", EXITS, ids=repr)
def test_whatever_a_plugin_raises_names_it(error, our_handler):
    registry = Registry()
    tokenizer = attributed_product(registry, "tokenizer", "mine", Exits(error))
    for function, call in (
        ("decode", lambda: tokenizer.decode([])),
        ("encode_batch", lambda: list(tokenizer.encode_batch("ab"))),
    ):
        with pytest.raises(UnexpectedExit) as caught:
            call()
        message = explain(caught.value, registry)
        assert message.message.startswith(f"tokenizer.mine of plug-in 'mine' of lab 2.0 failed in {function}: ")
        assert type(error).__name__ in message.message
        assert message.location.file == __file__


@pytest.mark.parametrize("error", EXITS, ids=repr)
def test_code_that_no_method_wraps_is_attributed_as_well(error, tmp_path, our_handler):
    """A backward pass, for example."""
    file = tmp_path / "lab.py"
    file.write_text("def backward(error):\n    raise error\n")
    backward = runpy.run_path(str(file))["backward"]
    loaded = Loaded(None, Config({}, {}, None), Registry())
    loaded.registry.plugins["it"] = Plugin("it", "lab", "2.0", file=str(file))
    with pytest.raises(UserError, match="failed in backward") as caught, loaded.explaining():
        backward(error)
    assert str(caught.value.location) == f"{file}:2"


def test_a_ctrl_c_of_the_user_passes(our_handler):
    tokenizer = attributed_product(Registry(), "tokenizer", "mine", Exits(None))
    tokenizer.decode = attributed(lambda ids: signal.raise_signal(signal.SIGINT), PluginCall("mine", "decode"))
    with pytest.raises(Interrupt):
        tokenizer.decode([])


def test_a_plugin_that_exits_when_it_is_imported_or_built_is_named(tmp_path, our_handler):
    for error in ("SystemExit(0)", "KeyboardInterrupt"):
        file = tmp_path / f"{error[:3]}.py"
        file.write_text(f"raise {error}\n")
        with pytest.raises(NotLoaded, match="could not be loaded: ") as caught:
            discover(PluginOptions((str(file),)))
        assert str(caught.value.location) == f"{file}:1"
