"""Every way in which a plug-in fails ends in one message that names it, its package, file and line, and the remedy."""

from __future__ import annotations

import copy
import inspect
import pickle
import runpy
import signal
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from mcframe.cli.user_errors import report_user_errors
from mcframe.config.run_config import all_plugins
from mcframe.errors import UserError
from mcframe.hookspecs import Schedule, TextSource, Tokenizer
from mcframe.registry.attribution import PluginCall, attributed, explain
from mcframe.registry.checks import ContractError
from mcframe.registry.plugins import Plugin, Registered, Registry
from mcframe.training.engine import Engine
from mcframe_plugins.schedule.trapezoid import Trapezoid
from tests.support.error_cases import CASES
from tests.support.errors_page import PAGE, installed, message_of, one_step, output_of, section
from tests.support.file_plugins import attributed_product

EXPECTED = {
    "import": "plug-in 'it' of mylab 1.0 could not be loaded: ModuleNotFoundError",
    "api": "made for mcframe's plug-in API 7.0",
    "taken": "two plug-ins offer gistnet.mean",
    "misspelt": "no parameter 'layer' (did you mean layers?)",
    "type": "gistnet.mine.layers = 'two': expected int, got str",
    "factory": "mylab.py:12\ngistnet.mine of plug-in 'it' of mylab 1.0 could not be built: AttributeError",
    "user error": "gistnet.mine.layers is 0; one is the least",
    "abstract": "gistnet.mine of plug-in 'it' of mylab 1.0: missing method forward of GistNet",
    "kind": "Register it as lensnet, not as gistnet.",
    "nothing": "from the factory, got a value of type function",
    "signature": "mylab.py:14\ngistnet.mine of plug-in 'it' of mylab 1.0: forward(children) cannot be called",
    "attribute": "missing attribute 'count' of VariantStrategy",
    "forward": "mylab.py:15\ngistnet.mine of plug-in 'it' of mylab 1.0 failed in forward: RuntimeError",
    "shape": "mylab.py:14\ngistnet.mine of plug-in 'it' of mylab 1.0: forward: expected gists",
    "dtype": "here [2, 32, 1, 64] float32, got [2, 32, 1, 64] float64",
    "scores": "forward: expected scores in [-1, 1]",
    "invalid focus": "propose: expected a valid focus",
    "length": "propose: expected focuses of 113 entries, got 125",
    "loss": "forward: expected a LossTerm, got a value of type Tensor",
    "positions": "forward: expected cosine [R, 1 or heads",
}
"""The key part of each message; the page has all of it."""


@pytest.mark.parametrize("case", CASES)
def test_a_failing_plugin_ends_in_the_message_of_the_page(case, tmp_path):
    with installed(case, tmp_path):
        code, output = output_of(case)
    assert code == 2, output
    assert output.count("mcframe stopped") == 1
    assert "Traceback" not in output
    message = message_of(output, tmp_path)
    assert EXPECTED[case] in message
    assert section(case, message) in PAGE.read_text("utf-8"), "run python -m tests.support.errors_page"


def test_the_traceback_is_there_on_request(tmp_path):
    with installed("forward", tmp_path), pytest.raises(UserError, match="failed in forward") as caught:
        report_user_errors(lambda: one_step(CASES["forward"].bindings), traceback=True)
    assert isinstance(caught.value.__cause__, RuntimeError)


class Characters(Tokenizer):
    identity = "characters"

    def encode_batch(self, texts):
        return [list(map(ord, text)) for text in texts]

    def decode(self, ids):
        return "".join(map(chr, ids))

    def byte_lengths(self):
        return torch.ones(128)


class ThirdParty(Tokenizer):
    """Calls its own methods, another plug-in, and code that fails while a result is read."""

    identity = "mine"

    def __init__(self, other=None):
        self.other = other

    def encode_batch(self, texts):
        return self.decode(texts)

    def decode(self, ids):
        return self.other.decode(ids) if self.other else 1 / 0

    def byte_lengths(self):
        return (1 // item for item in (1, 0))


def explained(registry, call):
    with pytest.raises(ZeroDivisionError) as caught:
        call()
    return explain(caught.value, registry)


def test_the_innermost_plugin_is_named_with_its_outermost_function():
    """Both plug-ins are of one file, so that the file alone does not identify them."""
    registry = Registry()
    tokenizers = []
    for name in ("inner", "outer"):
        tokenizers.append(attributed_product(registry, "tokenizer", name, ThirdParty(*tokenizers)))
    inner, outer = tokenizers
    for call, function in ((outer.encode_batch, "decode"), (inner.encode_batch, "encode_batch")):
        error = explained(registry, lambda call=call: call([]))
        assert error.message.startswith(f"tokenizer.inner of plug-in 'inner' of lab 2.0 failed in {function}: ")
        assert explained(Registry(), lambda call=call: call([])) is None
        assert str(error.location) == f"{__file__}:{inspect.unwrap(ThirdParty.decode).__code__.co_firstlineno + 1}"
    assert "failed in byte_lengths" in explained(registry, lambda: list(inner.byte_lengths())).message


NET = """
import torch
from mcframe.hookspecs import GistNet

class Net(GistNet):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        self.layer.doubled = self.layer.weight * 2

    def forward(self, children, lod):
        return children
"""


def deepcopy_error(part):
    with pytest.raises(RuntimeError, match="deepcopy") as caught:
        copy.deepcopy(part)
    return caught.value


def test_an_error_of_a_library_names_the_plugin_whose_module_it_was_called_with():
    names = {}
    exec(compile(NET, "/elsewhere/net.py", "exec"), names)
    registry = Registry()
    product = attributed_product(registry, "gistnet", "net", names["Net"]())
    expected = "gistnet.net of plug-in 'net' of lab 2.0 failed in __deepcopy__, called with its module: RuntimeError"
    for part in (product, product.layer):
        assert explain(deepcopy_error(part), registry).message.startswith(expected)
    assert explain(deepcopy_error(names["Net"]()), registry) is None  # of no plug-in


def test_the_loss_of_another_rank_is_no_error_of_a_plugin():
    registry = Registry()
    lost = RuntimeError("[/gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    call = attributed_product(
        registry, "tokenizer", "outer", ThirdParty(SimpleNamespace(decode=Mock(side_effect=lost)))
    )
    with pytest.raises(RuntimeError) as caught:
        call.decode([])
    assert explain(caught.value, registry) is None


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda product: pickle.loads(pickle.dumps(product))])
def test_methods_of_a_copy_refer_to_the_copy(duplicate):
    registry = Registry()
    outer = attributed_product(registry, "tokenizer", "outer", ThirdParty(Characters()))
    copied = duplicate(outer)
    assert type(copied) is ThirdParty
    copied.other = None
    assert outer.decode([65]) == "A"
    assert "tokenizer.outer" in explained(registry, lambda: copied.decode([])).message


def test_an_inherited_method_keeps_its_order():
    """The class between calls the override of its sibling, also if its own method is wrapped."""

    class Base(ThirdParty):
        def decode(self, ids):
            return 1 / 0

    class Between(Base):
        pass

    class Sibling(Base):
        def decode(self, ids):
            return "sibling"

    class Last(Between, Sibling):
        pass

    registry = Registry()
    between = attributed_product(registry, "tokenizer", "between", Between())
    assert "between" in explained(registry, lambda: between.decode([])).message
    assert Last().decode([]) == "sibling"
    with pytest.raises(ZeroDivisionError) as caught:
        Between().decode([])
    assert explain(caught.value, registry).message.startswith("plug-in 'between' of lab 2.0 failed in decode")


@dataclass(frozen=True)
class Frozen(Exception):
    reason: str


class Refuses(ThirdParty):
    def decode(self, ids):
        raise Frozen("no luck")


def test_an_error_that_refuses_attributes_is_attributed():
    registry = Registry()
    tokenizer = attributed_product(registry, "tokenizer", "mine", Refuses())
    with pytest.raises(Frozen) as caught:
        tokenizer.decode([])
    assert (
        "tokenizer.mine of plug-in 'mine' of lab 2.0 failed in decode: Frozen"
        in explain(caught.value, registry).message
    )


class Lines:
    """An iterator with a length and a method of its own."""

    closed = False

    def __iter__(self):
        return self

    def __next__(self):
        return 1 / 0

    def __len__(self):
        return 3

    def close(self):
        self.closed = True


class Text(TextSource):
    identity = "text"

    def __init__(self, lines):
        self.lines = lines

    def documents(self, epoch=0):
        return self.lines


def test_a_returned_iterator_keeps_its_methods():
    registry, lines = Registry(), Lines()
    documents = attributed_product(registry, "text", "mine", Text(lines)).documents()
    documents.close()
    assert lines.closed
    assert len(documents) == 3
    assert "failed in documents" in explained(registry, lambda: next(documents)).message
    unsized = attributed_product(registry, "text", "mine", Text(item for item in "ab")).documents()
    assert not hasattr(unsized, "__len__")
    assert list(unsized) == ["a", "b"]


class Falls(Schedule):
    def factor(self, step, total_steps):
        return 1 / step - 2


@pytest.mark.parametrize(
    ("step", "message"), [(0, "failed in factor: ZeroDivisionError"), (1, "factor: expected a factor of 0 or above")]
)
def test_errors_of_a_schedule_name_it(step, message):
    registry = Registry()
    schedule = attributed_product(registry, "schedule", "falls", Falls())
    with pytest.raises((ZeroDivisionError, ContractError)) as caught:
        Engine._lr_factor(SimpleNamespace(_schedule=schedule, _steps=4), step)
    error = explain(caught.value, registry)
    assert error.message.startswith("schedule.falls of plug-in 'falls' of lab 2.0")
    assert message in error.message
    assert error.location.file == __file__


def test_code_that_is_called_by_no_method_is_attributed_by_its_file(tmp_path):
    file = tmp_path / "lab.py"
    file.write_text("def backward(gradient):\n    return gradient / 0\n")
    backward = runpy.run_path(str(file))["backward"]
    registry = Registry()
    registry.plugins["it"] = Plugin("it", "lab", "2.0", file=str(file))
    error = explained(registry, lambda: backward(1))
    assert error.message.startswith("plug-in 'it' of lab 2.0 failed in backward: ")
    assert str(error.location) == f"{file}:2"
    assert explained(Registry(), lambda: backward(1)) is None


@pytest.mark.parametrize("implementation", [False, True])
def test_the_nearest_file_of_a_package_decides(tmp_path, implementation):
    """The nearest one is a plug-in's own module, or a module of one of its implementations."""
    for name in ("__init__.py", "first.py", "second.py", "part/__init__.py"):
        (tmp_path / "lab" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lab" / name).touch()
    source = "def factory(): ...\ndef backward(gradient):\n    return gradient / 0\n"
    (tmp_path / "lab/part/net.py").write_text(source)
    functions = runpy.run_path(str(tmp_path / "lab/part/net.py"))
    registry = Registry()
    for name in ("first", "second", "third"):
        registry.plugins[name] = Plugin(name, "lab", "2.0", file=str(tmp_path / f"lab/{name}.py"))
    if implementation:
        registry.implementations["gistnet"]["net"] = Registered("gistnet", "net", functions["factory"], "second")
    else:
        registry.plugins["second"] = Plugin("second", "lab", "2.0", file=str(tmp_path / "lab/part/__init__.py"))
    error = explained(registry, lambda: functions["backward"](1))
    assert error.message.startswith("plug-in 'second' of lab 2.0 failed in backward: ")
    assert str(error.location) == f"{tmp_path}/lab/part/net.py:3"


def test_an_implementation_that_belongs_to_mcframe_attributes_nothing(tmp_path):
    """A plug-in may register a class of mcframe under another name."""
    registry = all_plugins()
    registry.plugins["it"] = Plugin("it", "lab", "2.0")
    registry.implementations["schedule"]["mine"] = Registered("schedule", "mine", Trapezoid, "it", "lab", "2.0")
    with pytest.raises(TypeError) as caught:
        Trapezoid().factor("first", 10)
    assert explain(caught.value, registry) is None


@pytest.mark.parametrize("file", ["", "lab.py"])
def test_a_package_in_the_working_directory_ends_the_search(tmp_path, monkeypatch, file):
    monkeypatch.chdir(tmp_path)
    Path("__init__.py").touch()
    registry = Registry()
    registry.plugins["it"] = Plugin("it", "lab", "2.0", file=file)

    def expire(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, 5)
    try:
        error = explained(registry, lambda: attributed(lambda: 1 / 0, PluginCall("it", "its hook run_started"))())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert error.message.startswith("plug-in 'it' of lab 2.0 failed in its hook run_started")
