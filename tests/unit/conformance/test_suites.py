"""The requirement suites for pytest, as tests of third-party packages use them, and their guards."""

import functools

import pytest

from mcframe.errors import UserError
from mcframe.testing import GistNetSuite, all_requirements, check_plugin
from mcframe.testing.requirements import requirement, requirements_of
from mcframe.testing.suites import BY_KIND

pytest_plugins = ["pytester"]

PLUGIN = '''
from mcframe.hookspecs import GistNet, hookimpl

mcframe_api = "0.1"

class Mine(GistNet):
    """First children, times a number.

    bad  drops a node
    """

    def __init__(self, shape, *, bad: bool = False) -> None:
        super().__init__()
        self.slots, self.bad = shape.tree.slots, bad

    def forward(self, children, lod):
        """Return gists."""
        return children[:, int(self.bad):, : self.slots]


@hookimpl
def register_plugins(register):
    """Register it."""
    register("mine", Mine)
'''

TESTS = """
import pytest
from mcframe.testing import GistNetSuite, LensNetSuite


class Ours(GistNetSuite):
    plugins = ("mine.py",)

    @pytest.fixture
    def plugin(self):
        return "gistnet.mine"


class TestGood(Ours):
    pass


class TestBad(Ours):
    settings = ("gistnet.mine.bad = True",)


class TestKnown(Ours):
    settings = ("gistnet.mine.bad = True",)
    known_failures = {"G1": "drops a node"}


class TestKnownAndPasses(Ours):
    known_failures = {"G1": "drops a node"}


class TestOtherKind(LensNetSuite):
    @pytest.fixture
    def plugin(self):
        return "gistnet.mean"


class TestNoFixture(GistNetSuite):
    pass
"""


def outcomes(pytester, selected):
    """Return the outcome and the message of each test by class and first word of the test."""
    recorded = pytester.inline_run("-p", "no:cacheprovider", "-k", selected)
    found = {}
    for report in recorded.getreports("pytest_runtest_logreport"):
        if report.when == "call" or report.outcome != "passed":
            *_, owner, test = report.nodeid.split("::")
            outcome = "xfailed" if hasattr(report, "wasxfail") else report.outcome
            found[owner, test.split("_")[1]] = outcome, str(report.longrepr)
    return found


def test_outcomes_in_pytest(pytester):
    pytester.makepyfile(mine=PLUGIN, test_theirs=TESTS)
    found = outcomes(pytester, "G1 or G2 or G3 or disabled")
    assert {key: outcome for key, (outcome, _) in found.items() if outcome != "passed"} == {
        ("TestBad", "G1"): "failed",
        ("TestBad", "G3"): "skipped",
        ("TestKnown", "G1"): "xfailed",
        ("TestKnown", "G3"): "failed",
        ("TestKnownAndPasses", "G1"): "failed",
        **{("TestNoFixture", id): "failed" for id in ("G1", "G2", "G3")},
    }
    assert "gistnet.mine breaks G1" in found["TestBad", "G1"][1]
    assert "no fixture `plugin`" in found["TestNoFixture", "G1"][1]


DATA = '''
from mcframe.errors import UserError
from mcframe.hookspecs import Tokenizer, hookimpl

mcframe_api = "0.1"

class Ours(Tokenizer):
    """Reads a file of merges.

    file  its path
    """

    vocab_size, separator, identity = 2, 0, "ours-1"

    def __init__(self, file: str) -> None:
        raise UserError(f"missing {file}", remedy="train it")

    def encode_batch(self, texts):
        return [[1 for _ in text] for text in texts]

    def decode(self, ids):
        return ""

    def byte_lengths(self):
        return None


@hookimpl
def register_plugins(register):
    register("ours", Ours)
'''

DATA_TESTS = """
import pytest
from mcframe.testing import TokenizerSuite


class TestWaits(TokenizerSuite):
    plugins = ("ours.py",)

    @pytest.fixture
    def plugin(self):
        return "tokenizer.ours"


class TestIsKnownToWait(TestWaits):
    known_failures = {"P6": "the merges are not ready"}


class TestFails(TestWaits):
    settings = ("tokenizer.ours.file = 'merges.txt'",)
"""


def test_plugin_that_cannot_be_built_fails_once(pytester):
    pytester.makepyfile(ours=DATA, test_ours=DATA_TESTS)
    found = {
        key: message for key, (outcome, message) in outcomes(pytester, "not disabled").items() if outcome == "failed"
    }
    assert found.keys() == {("TestWaits", "P6"), ("TestFails", "P6")}
    assert "tokenizer.ours.file" in found["TestWaits", "P6"]
    assert "missing merges.txt" in found["TestFails", "P6"]


def test_check_can_be_neither_deleted_nor_replaced():
    original = GistNetSuite.test_G1_form
    for replacement in (None, lambda self: None, functools.wraps(original)(lambda self: None)):
        with pytest.raises(TypeError, match="test_G1_form"):
            type("Mine", (GistNetSuite,), {"test_G1_form": replacement})

    class Later(GistNetSuite):
        pass

    Later.test_G3_bounded = None
    with pytest.raises(TypeError, match="test_G3_bounded"):
        Later().test_no_requirement_is_disabled()


@pytest.mark.parametrize(
    "mark", [pytest.mark.skip(reason="later"), pytest.mark.xfail, pytest.mark.skipif(True, reason="")]
)
def test_check_cannot_be_marked_as_skipped(mark, monkeypatch):
    check = GistNetSuite.test_G1_form
    monkeypatch.setattr(check, "pytestmark", [], raising=False)  # removes the mark after the test
    with pytest.raises(TypeError, match=mark.name):
        type("Mine", (GistNetSuite,), {"test_G1_form": mark(check)})


def test_known_failures_need_an_id_and_a_reason():
    with pytest.raises(TypeError, match="G1 has no reason"):
        type("Mine", (GistNetSuite,), {"known_failures": {"G1": " "}})
    with pytest.raises(UserError, match="G999"):
        type("Mine", (GistNetSuite,), {"known_failures": {"G999": "why not"}})


def test_every_requirement_has_a_test_in_the_suite_of_its_kind():
    kinds = {kind for each in all_requirements().values() for kind in each.kinds}
    assert kinds - {"*"} <= BY_KIND.keys()
    for kind, suite in BY_KIND.items():
        tests = {name for name in dir(suite) if name.startswith("test_")}
        assert tests == {each.name for each in requirements_of(kind)} | {"test_no_requirement_is_disabled"}


def test_wrong_definition_of_a_requirement_is_an_error():
    def g998_new(plugin):
        pass

    for id, check, after in (("G1", g998_new, ()), ("G998", lambda plugin: None, ()), ("G998", g998_new, ("G999",))):
        with pytest.raises(ValueError, match=id):
            requirement(id, "New", "gistnet", after=after)(check)
    assert "G998" not in all_requirements()


def test_results_without_pytest():
    results = check_plugin("gistnet.mean", only=iter(["G1", "G2"]))
    assert [(each.requirement, each.outcome) for each in results] == [("G1", "passed"), ("G2", "passed")]
    for name, only in (("gistnet.mean", ["L1"]), ("gistnet.median", []), ("gistnets.mean", [])):
        with pytest.raises(UserError):
            check_plugin(name, only=only)


@pytest.mark.parametrize(("old", "new"), [("GistNetContract", "GistNetSuite"), ("SinkContract", "LoggerSuite")])
def test_old_name_of_a_suite_is_an_error_with_the_new_name(old, new):
    import mcframe.testing

    assert getattr(mcframe.testing, new)
    with pytest.raises(ImportError, match=f"{old} has a new name: {new}"):
        getattr(mcframe.testing, old)
