"""Every mistake in a gin file names the file, the line, what was probably meant, and the remedy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import Field

from mcframe import config
from mcframe.bounds import Decay, NonNegative
from mcframe.config.diagnosis import explain
from mcframe.config.values import render
from mcframe.errors import UserError
from mcframe.hookspecs import hookimpl
from mcframe.registry.plugins import Registry

if TYPE_CHECKING:
    from nowhere import Unresolvable


class Transformer:
    def __init__(self, shape: Any, layers: int = 2, heads: int = 4, pooling: Literal["mean", "query"] = "mean") -> None:
        pass


def needy(shape: Any, *, path: str) -> None: ...


def run(
    *,
    name: str = "",
    gistnet: Callable[..., Any] | None = None,
    steps: int = 1,
    rate: float = 0.1,
    ratio: Annotated[float, Field(le=1)] = 0.5,
    sizes: Sequence[int] = (),
    heads: Annotated[int, Field(ge=1, le=8)] | None = None,
    betas: Annotated[Sequence[Decay], Field(min_length=2, max_length=2)] = (0.9, 0.95),
    scales: Mapping[str, NonNegative] | None = None,
    parts: Sequence[Literal["base", "gistnet"]] = (),
    pair: tuple[int, int] = (0, 0),
    flag: bool = False,
    slip: int = None,  # noqa: RUF013 - the slip is the point
    hidden: Unresolvable | None = None,
    extra: Any = None,
) -> None: ...


def anything(**keywords: Any) -> dict[str, Any]:
    return keywords


class Plugin:
    @hookimpl
    def register_plugins(self, register):
        register("transformer", Transformer, kind="gistnet")
        register("needy", needy, kind="gistnet")


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config.register("", "run", run)
    config.register("", "anything", anything)
    registry = Registry()
    registry.register_plugin(Plugin(), "tests")

    def load(text: str, *overrides: str, **files: str) -> config.Config:
        Path("main.gin").write_text(text)
        for name, content in files.items():
            Path(f"{name}.gin").write_text(content)
        return config.load(["main.gin"], overrides, registry)

    yield load
    config.clear()


# The mistake stands in line 3; each row: the line, then the parts of message and remedy.
MISTAKES = {
    "no equals sign": ("run.steps 3", ["one binding a line"]),
    "colon for equals": ("run.steps: 3", ["'=', not with ':'"]),
    "no value": ("run.steps =", ["run.steps has no value"]),
    "unquoted string": ("run.name = foo", ["without quotes", "Quote it: run.name = 'foo'"]),
    "unquoted path": ("run.name = /data/x.txt", ["Quote it: run.name = '/data/x.txt'"]),
    "unquoted words": ("run.name = my-first run # try", ["Quote it: run.name = 'my-first run'"]),
    "unquoted in a list": ("run.extra = ['a', foo]", ["foo is a string without quotes", "Quote it: 'foo'"]),
    "true": ("run.flag = true", ["did you mean True?", "Write True"]),
    "null": ("run.extra = null", ["did you mean None?"]),
    "misspelt constant": ("run.flag = Flase", ["did you mean False?"]),
    "expression": ("run.steps = 2*3", ["2*3 is an expression", "gin does not calculate", "Write the result"]),
    "power in a list": ("run.extra = [2**16, 1]", ["gin does not calculate"]),
    "call": ("run.name = str(3)", ["gin does not calculate"]),
    "unterminated quote": ("run.name = 'foo", ["no closing quote", "Close the quote"]),
    "unterminated triple quote": ("run.name = '''foo", ["no closing quote", "Close the quote"]),
    "unclosed bracket": ("run.extra = [1, 2", ["a bracket is never closed: run.extra = [1, 2", "Close it"]),
    "strange sign": ("run.steps = $3", ["one binding a line"]),
    "leading zero": ("run.steps = 007", ["one binding a line"]),
    "unclosed bracket in the middle": ("run.extra = [1, 2\nrun.steps = 3\nrun.rate = 4.0", ["never closed: run.extra"]),
    "arguments in a reference": ("run.gistnet = @gistnet.transformer(4)", ["takes no arguments", "line of its own"]),
    "two on a line": ("run.steps = 3 run.rate = 4", ["one binding a line"]),
    "import": ("import os", ["cannot import modules (import os)", "entry-point group mcframe.plugins"]),
    "unknown plug-in": (
        "run.gistnet = @gistnet.tranformer",
        [
            "unknown plug-in @gistnet.tranformer",
            "did you mean @gistnet.transformer?",
            "expected one of: @gistnet.needy, @",
        ],
    ),
    "unknown plug-in, none of its kind": ("run.extra = @lensnet.mean", ["expected one of: none"]),
    "unknown plug-in within a list": ("run.extra = [{'a': @gistnet.x}]", ["unknown plug-in @gistnet.x"]),
    "parameter of an unknown plug-in": ("gistnet.tranformer.layers = 3", ["did you mean @gistnet.transformer?"]),
    "short name": ("run.gistnet = @transformer", ["did you mean gistnet.transformer?", "the full name"]),
    "unknown kind": ("run.gistnet = @gistnets.transformer", ["did you mean gistnet.transformer?"]),
    "unknown configurable": ("rum.steps = 3", ["unknown name rum", "did you mean run?"]),
    "choice as a parameter": ("gistnet.transformer = 3", ["an implementation", "as @gistnet.transformer"]),
    "unknown parameter": (
        "gistnet.transformer.layer = 3",
        ["no parameter 'layer'", "did you mean layers?", "its parameters: layers, heads, pooling"],
    ),
    "parameter of the framework": ("gistnet.transformer.shape = 3", ["supplied by the framework", "Remove it"]),
    "unknown parameter in a block": ("run:\n    stepps = 3", ["did you mean steps?"]),
    "undefined macro": ("run.steps = %DEPHT", ["%DEPHT, which is not defined", "did you mean %DEPTH?", "DEPHT = ..."]),
    "macros in a circle": ("A = %B\nB = %A", ["refer to each other: A = %B = %A"]),
    "bound twice": ("run.steps = 3\nrun.rate = 1.0\nrun.steps = 4", ["in line 3 and in line 5", "Remove one"]),
    "bound twice by block": ("run.steps = 3\nrun:\n  steps = 4", ["in line 3 and in line 5"]),
    "float for int": ("run.steps = 3.0", ["expected int, got float"]),
    "bool for int": ("run.steps = True", ["expected int, got bool"]),
    "quoted int": ("run.steps = '3'", ["expected int, got str", "without quotes: run.steps = 3"]),
    "string for float": ("run.rate = 'fast'", ["expected float, got str", "a value of type float"]),
    "int for bool": ("run.flag = 1", ["expected bool, got int"]),
    "None": ("run.steps = None", ["expected int, got NoneType"]),
    "wrong choice": ("gistnet.transformer.pooling = 'men'", ["did you mean mean?", "Write one of: 'mean', 'query'"]),
    "wrong item": ("run.sizes = [1, 'b']", ["expected Sequence[int], got list", "at position 1"]),
    "list for tuple": ("run.pair = [1, 2]", ["Write a tuple: run.pair = (1, 2)"]),
    "wrong length": ("run.pair = (1, 2, 3)", ["tuple[int, int]"]),
    "out of range": ("run.ratio = 1.5", ["expected a number up to 1, got 1.5"]),
    "macro of a wrong type": ("run.steps = %WORD", ["expected int, got str"]),
    "string for a reference": ("run.gistnet = 'transformer'", ["Refer to it: run.gistnet = @gistnet.transformer"]),
    "reference for an int": ("run.steps = @gistnet.transformer", ["expected int"]),
    "called reference": ("run.gistnet = @gistnet.transformer()", ["Remove the parentheses", "= @gistnet.transformer"]),
    "incomplete reference": (
        "run.gistnet = @gistnet.needy",
        ["missing values for path", "Add gistnet.needy.path = ..."],
    ),
    "REQUIRED": (
        "run.steps = %gin.REQUIRED\nrun.rate = %gin.REQUIRED",
        ["missing values for run.steps, run.rate", "--set"],
    ),
    "REQUIRED macro": ("LATER = %gin.REQUIRED\nrun.steps = %LATER", ["missing values for LATER", "'LATER = ...'"]),
    "missing include": ("include 'bsae.gin'", ["missing gin file 'bsae.gin'", "did you mean base.gin?", "searched"]),
    "include in a circle": ("include 'loop.gin'", ["include each other", "main.gin includes", "loop.gin"]),
    "unquoted include": ("include base.gin", ["written in quotes: include base.gin", "Write include 'base.gin'"]),
    "nan": ("run.rate = nan", ["nan is not a value", "Write a finite number"]),
    "negative infinity": ("run.rate = -inf", ["is not a value", "Write a finite number"]),
    "string for a reference with its kind": ("run.gistnet = 'gistnet.transformer'", ["= @gistnet.transformer"]),
    "string for a list": ("run.parts = 'base'", ["expected a list, got str", "Write run.parts = ['base']"]),
    "too large for float32": ("run.rate = 1e300", ["a number that float32 can hold, got 1e+300"]),
    "too small for float32": ("run.rate = 1e-40", ["a number that float32 can hold, got 1e-40"]),
    "overflow": ("run.rate = 1e999", ["a number that float32 can hold, got 1e999"]),
    "too large for int64": ("run.steps = 1000000000000000000000", ["from -2**63 to 2**63 - 1"]),
    "bound of an optional": ("run.heads = 0", ["run.heads: expected a number from 1 to 8, or None, got 0"]),
    "size of a list": ("run.betas = (0.9,)", ["expected 2 values from 0 and below 1, got (0.9,)"]),
    "item of a list": ("run.betas = (0.9, 1.0)", ["expected 2 values from 0 and below 1, got (0.9, 1.0)"]),
    "value of a dictionary": ("run.scales = {'a': -1.0}", ["expected values of 0 or more, or None, got {'a': -1.0}"]),
    "bound by a macro": ("run.heads = %TEN\nTEN = 10", ["expected a number from 1 to 8, or None"]),
}

LINES = {"bound twice": 5, "bound twice by block": 5, "unknown parameter in a block": 4}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_explained_where_it_is(load, mistake):
    line, expected = MISTAKES[mistake]
    with pytest.raises(UserError) as caught:
        load(f"DEPTH = 4\nWORD = 'w'\n{line}\n", base="", loop="include 'main.gin'\n")
    error, text = caught.value, str(caught.value)
    assert error.remedy
    for part in expected:
        assert part in text
    file, number = ("loop.gin", 1) if "circle" in mistake and "loop" in line else ("main.gin", LINES.get(mistake, 3))
    assert text.startswith(f"{file}:{number}: "), text


def test_a_mistake_in_an_included_file_is_placed_there(load):
    Path("sub").mkdir()
    Path("sub/base.gin").write_text("include 'deep.gin'\nrun.stepz = 1\n")
    Path("sub/deep.gin").write_text("run.rate = 1\n")
    with pytest.raises(UserError, match=r"^sub/base\.gin:2: ") as caught:
        load("\n\ninclude 'sub/base.gin'\n")
    assert "did you mean steps?" in str(caught.value)


def test_a_mistake_on_the_command_line_is_placed_there(load):
    with pytest.raises(UserError) as caught:
        load("run.name = 'a'\n", "run.steps = 2", "run.name = foo")
    assert str(caught.value).startswith("--set 'run.name = foo': foo is a string without quotes")
    with pytest.raises(UserError, match=r"^--set 'run.steps = 1.5'"):
        load("run.name = 'a'\n", "run.steps = 1.5")


def test_a_missing_file(load):
    load("run.name = 'a'\n", quickstart="")
    with pytest.raises(UserError, match=r"missing gin file 'quikstart.gin' \(did you mean quickstart.gin"):
        config.load(["quikstart.gin"], [], Registry())


def test_a_binary_file(load):
    load("")
    Path("data.gin").write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(UserError, match="not UTF-8") as caught:
        load("\ninclude 'data.gin'\n")
    assert str(caught.value).startswith("main.gin:2")


RIGHT = [
    "run.rate = 1",
    "run.ratio = 1",
    "run.sizes = (1, 2)",
    "run.slip = None",
    "run.hidden = 3",
    "run.extra = @gistnet.needy\ngistnet.needy.path = 'p'",
    "run.extra = @a/gistnet.needy\na/gistnet.needy.path = 'p'",
    "run.extra = @run()",
    "run.extra = %LATER\nLATER = %gin.REQUIRED\ninclude 'later.gin'",
    "anything.at_all = 3",
    "run:\n    steps = 3\n    # comment\n    rate = 2.0\nrun.name = 'x'",
    "run.extra = [\n    1,  # one\n    2,\n]",
    "run.name = 'a#b' 'c'",
    "run.extra = - 3",
]


@pytest.mark.parametrize("text", RIGHT)
def test_correct_bindings_load(load, text):
    load(f"{text}\n", later="LATER = 3\n")


def test_required_values_may_come_from_the_command_line(load):
    assert load("run.steps = %gin.REQUIRED\n", "run.steps = 3").bindings["run.steps"].value == 3


def test_the_same_file_may_be_included_on_two_paths(load):
    load("include 'a.gin'\ninclude 'b.gin'\n", a="include 'base.gin'\n", b="include 'base.gin'\n", base="run.steps=2\n")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text("abc'\""), inner),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None)
@given(VALUES)
def test_every_value_survives_being_written_and_read(value):
    config.register("", "run", run)
    loaded = config.load([], [f"run.extra = {render(value)}"], Registry())
    assert loaded.bindings["run.extra"].value == value
    again = config.load([], loaded.bound().splitlines(), Registry())
    assert again.bindings["run.extra"].value == value


@given(st.text(st.characters(codec="utf-8"), max_size=30), st.text(max_size=20))
@example("=\0", "")
def test_explaining_never_fails(line, error):
    message, remedy = explain(error, line)
    assert message
    assert remedy


def test_a_null_character_is_a_message(load):
    for line in ("run.seed = 1\0", "run.extra = 'a\0'"):
        with pytest.raises(UserError):
            load(f"run.seed = 2\n{line}\n")


def test_renamed_bindings_and_references_end_in_the_new_name(load):
    with pytest.raises(UserError, match=r"run\.sinks has a new name: run\.loggers"):
        load("run.sinks = []\n")
    with pytest.raises(UserError, match=r"@sink\.prometheus has a new name: @logger\.prometheus"):
        load("run.extra = @sink.prometheus\n")
    with pytest.raises(UserError, match=r"evaluation\.gist_quality\.resamples no longer exists: intervals"):
        load("evaluation.gist_quality.resamples = 50\n")
