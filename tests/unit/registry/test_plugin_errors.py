"""Every way in which a plug-in fails ends in one message that names it, its package, file and line, and the remedy."""

from __future__ import annotations

import copy
import pickle
import runpy

import pytest
import torch

from mcframe.cli.user_errors import report_user_errors
from mcframe.errors import UserError
from mcframe.hookspecs import Tokenizer
from mcframe.registry.attribution import attribute_calls, explain
from mcframe.registry.plugins import Plugin, Registered, Registry
from mcframe.training.train_step import StepBatch, TrainStep
from mcframe_plugins.variants import RandomCollapse
from tests.support.error_cases import CASES
from tests.support.errors_page import PAGE, installed, message_of, one_step, output_of, section
from tests.support.generators import geometry_of
from tests.support.modeling_builders import TREE, build_step, random_tokens, seeds_for

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
    "hook": "mylab.py:10\nplug-in 'it' of mylab 1.0 failed in its hook step_finished: OSError: the pager is down",
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
        registry.plugins[name] = Plugin(name, "lab", "2.0")
        tokenizers.append(ThirdParty(*tokenizers))
        attribute_calls(tokenizers[-1], Registered("tokenizer", name, ThirdParty, name, "lab", "2.0"))
    inner, outer = tokenizers
    for call, function in ((outer.encode_batch, "decode"), (inner.encode_batch, "encode_batch")):
        error = explained(registry, lambda call=call: call([]))
        assert error.message.startswith(f"tokenizer.inner of plug-in 'inner' of lab 2.0 failed in {function}: ")
        assert str(error.location) == f"{__file__}:{ThirdParty.decode.__code__.co_firstlineno + 1}"
    assert "failed in byte_lengths" in explained(registry, lambda: list(inner.byte_lengths())).message
    duplicate = copy.deepcopy(outer)
    assert duplicate.encode_batch.__self__ is duplicate
    assert type(pickle.loads(pickle.dumps(outer))) is ThirdParty
    assert "plug-in 'inner'" in explained(registry, lambda: duplicate.decode([])).message


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


def test_attributed_calls_leave_the_step_one_graph():
    built = build_step(TREE, RandomCollapse(geometry_of(TREE)), lensnet="transformer")
    step = TrainStep(built.model, list(built.losses.each()), built.settings.lens_targets)
    model = step.model
    batch = StepBatch(random_tokens(TREE, 2, 0), seeds_for(2, 2), 21)
    expected = step(batch)
    for kind, plugin in (
        ("gistnet", model.gistnet), ("lensnet", model.lensnet), ("variants", model.strategy),
        ("positions", model.gpt.positions), *(("loss", loss) for loss in step.losses.each()),
    ):  # fmt: skip
        attribute_calls(plugin, Registered(kind, "mine", type(plugin), "it"))
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(step, fullgraph=True, backend="eager")(batch)[0], expected[0])
