"""Examples of settings that factories declare."""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mcframe.hookspecs import TextSource, hookimpl
from mcframe.testing.assertions import NotConforming
from mcframe.testing.host_sync import operations
from mcframe.testing.plugin_under_test import _example, find

CALLS = []


class Slow(TextSource):
    """Documents of the file at path, which takes a while to write."""

    identity = "slow"

    def __init__(self, path: str = "") -> None:
        pass

    def documents(self, epoch=0):
        yield "one"

    @staticmethod
    def example_settings(folder):
        CALLS.append("slow")
        time.sleep(0.2)
        return {"path": str(folder)}


class Spoilt(Slow):
    """Documents of the file at path, which cannot be written."""

    @staticmethod
    def example_settings(folder):
        CALLS.append("spoilt")
        raise OSError("the disk is full")


class Other(Slow):
    """Documents of a server at this address; the example of its base does not apply."""

    def __init__(self, address: str = "") -> None:
        pass


class Same(Slow):
    """Documents of the file at path, as its base writes it."""


class Misspelt(Slow):
    """Documents of the file at path; its example returns another parameter."""

    @staticmethod
    def example_settings(folder):
        return {"paths": str(folder), "path": str(folder)}


class Unwritten(Slow):
    """Documents of the file at path; its example returns a value that gin cannot write."""

    @staticmethod
    def example_settings(folder):
        return {"path": folder}


class Keywords(Slow):
    """Documents of the file at path; takes anything."""

    def __init__(self, **options: str) -> None:
        pass


@hookimpl
def register_plugins(register):
    for each in (Slow, Spoilt, Other, Same, Misspelt, Unwritten, Keywords):
        register(each.__name__.lower(), each)


@pytest.fixture
def plugin(registry_of):
    CALLS.clear()
    registry = registry_of(sys.modules[__name__])
    return lambda name, *settings: find(f"text.{name}", settings, registry=registry)


def test_threads_share_one_example(plugin):
    """A second example would have another folder, and everything would be trained again."""
    together = threading.Barrier(2)

    def example(each):
        together.wait(10)
        return _example(each.configurable)  # `bindings` of Python 3.11 let in one thread at a time

    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(example, [plugin("slow"), plugin("slow")])
    assert one == other
    assert CALLS == ["slow"]


def test_inherited_example_is_used_if_it_fits(plugin):
    assert plugin("other").bindings == ()
    for name in ("same", "keywords"):
        (binding,) = plugin(name).bindings
        assert binding.startswith(f"text.{name}.path = '/")


@pytest.mark.parametrize(
    ("name", "detail"),
    [
        ("misspelt", "its example_settings returned unknown parameters: paths"),
        ("unwritten", r"its example_settings returned values that gin cannot write: path = PosixPath\("),
    ],
)
def test_example_that_gin_cannot_bind_is_an_error(plugin, name, detail):
    with pytest.raises(NotConforming, match=detail):
        _ = plugin(name).bindings


def test_example_that_fails_is_tried_once(plugin):
    messages = set()
    for _ in range(2):
        with pytest.raises(NotConforming, match="its example_settings raised OSError: the disk is full") as caught:
            _ = plugin("spoilt").bindings
        messages.add(str(caught.value))
    assert len(messages) == 1
    assert CALLS == ["spoilt"]


@pytest.mark.parametrize("kind", [torch.nn.GRU, torch.nn.LSTM, torch.nn.RNN])
def test_a_recurrent_layer_counts_as_one_operation(kind):
    """On a CPU it runs one operation a time step, on a GPU one kernel."""
    layer = kind(4, 3, batch_first=True)
    counts = [operations(lambda length=length: layer(torch.ones(1, length, 4))) for length in (2, 50)]
    assert counts[0] == counts[1]
    assert operations(lambda: [layer(torch.ones(1, 1, 4)) for _ in range(9)]) > counts[0]
