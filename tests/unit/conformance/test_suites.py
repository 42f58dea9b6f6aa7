"""The contracts for pytest, as somebody else's tests use them; and what guards them."""

import functools

import pytest

from mcframe.errors import UserError
from mcframe.testing import GistNetContract, check_plugin, every_clause
from mcframe.testing.requirements import clauses_of, requirement
from mcframe.testing.suites import CONTRACTS

pytest_plugins = ["pytester"]

PLUGIN = '''
from mcframe.hookspecs import GistNet, hookimpl

mcframe_api = "0.1"

class Mine(GistNet):
    """First children, times a number.

    bad     to lose a node
    """

    def __init__(self, shape, *, bad: bool = False) -> None:
        super().__init__()
        self.slots, self.bad = shape.tree.slots, bad

    def forward(self, children, lod):
        """Gists."""
        return children[:, int(self.bad):, : self.slots]


@hookimpl
def register_plugins(register):
    """Offer it."""
    register("mine", Mine)
'''

TESTS = """
import pytest
from mcframe.testing import GistNetContract, LensNetContract


class Ours(GistNetContract):
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
    known_failures = {"G1": "loses a node"}


class TestKnownAndPasses(Ours):
    known_failures = {"G1": "loses a node"}


class TestOtherKind(LensNetContract):
    @pytest.fixture
    def plugin(self):
        return "gistnet.mean"


class TestNoFixture(GistNetContract):
    pass
"""


def test_what_pytest_reports(pytester):
    pytester.makepyfile(mine=PLUGIN, test_theirs=TESTS)
    recorded = pytester.inline_run("-p", "no:cacheprovider", "-k", "G1 or G3 or every")
    outcomes, messages = {}, {}
    for report in recorded.getreports("pytest_runtest_logreport"):
        if report.when == "call" or report.outcome != "passed":
            *_, owner, test = report.nodeid.split("::")
            key = owner, test.split("_")[1]
            outcomes[key] = "xfailed" if hasattr(report, "wasxfail") else report.outcome
            messages[key] = str(report.longrepr)
    assert outcomes == {
        ("TestGood", "every"): "passed",
        ("TestGood", "G1"): "passed",
        ("TestGood", "G3"): "passed",
        ("TestBad", "every"): "passed",
        ("TestBad", "G1"): "failed",
        ("TestBad", "G3"): "skipped",
        ("TestKnown", "every"): "passed",
        ("TestKnown", "G1"): "xfailed",
        ("TestKnown", "G3"): "passed",
        ("TestKnownAndPasses", "every"): "passed",
        ("TestKnownAndPasses", "G1"): "failed",
        ("TestKnownAndPasses", "G3"): "passed",
        ("TestOtherKind", "every"): "passed",
        ("TestNoFixture", "every"): "passed",
        ("TestNoFixture", "G1"): "failed",
        ("TestNoFixture", "G3"): "failed",
    }
    assert "gistnet.mine breaks G1" in messages["TestBad", "G1"]
    assert "means nothing while G1 fails" in messages["TestBad", "G3"]
    assert "loses a node" in messages["TestKnownAndPasses", "G1"]
    assert "no fixture `plugin`" in messages["TestNoFixture", "G1"]


DATA = '''
from mcframe.errors import UserError
from mcframe.hookspecs import Tokenizer, hookimpl

mcframe_api = "0.1"

class Ours(Tokenizer):
    """Reads a file of merges.

    file  where it is
    """

    vocab_size, separator, identity = 2, 0, "ours-1"

    def __init__(self, file: str) -> None:
        raise UserError(f"there is no {file}", remedy="train it")

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
from mcframe.testing import TokenizerContract


class TestWaits(TokenizerContract):
    plugins = ("ours.py",)

    @pytest.fixture
    def plugin(self):
        return "tokenizer.ours"


class TestIsKnownToWait(TestWaits):
    known_failures = {"P8": "there are no merges yet"}


class TestFails(TestWaits):
    settings = ("tokenizer.ours.file = 'merges.txt'",)
"""


def test_data_that_cannot_be_built_fails_once_and_says_why(pytester):
    pytester.makepyfile(ours=DATA, test_ours=DATA_TESTS)

    def failures(chosen):
        recorded = pytester.inline_run("-p", "no:cacheprovider", "-k", chosen)
        failed = [each for each in recorded.getreports("pytest_runtest_logreport") if each.failed]
        named = [each.nodeid.split("::")[1:] for each in failed]
        return {
            (owner, test.split("_")[1]): str(each.longrepr) for (owner, test), each in zip(named, failed, strict=True)
        }

    found = failures("not every")
    assert found.keys() == {("TestWaits", "P8"), ("TestFails", "P8")}
    assert "it needs a setting: tokenizer.ours.file; give it in `settings`" in found["TestWaits", "P8"]
    assert "there is no merges.txt\n  remedy: train it" in found["TestFails", "P8"]
    alone = failures("K1")
    assert alone.keys() == {("TestFails", "K1")}
    assert "there is no merges.txt" in alone["TestFails", "K1"]


@pytest.mark.parametrize("replacement", [None, lambda self: None])
def test_a_check_can_be_neither_deleted_nor_overridden(replacement):
    with pytest.raises(TypeError, match=r"Mine\.test_G1_shape is deleted or overridden"):
        type("Mine", (GistNetContract,), {"test_G1_shape": replacement})

    class Later(GistNetContract):
        pass

    Later.test_G5_causal = replacement
    with pytest.raises(TypeError, match=r"Later\.test_G5_causal"):
        Later().test_every_clause_is_checked()


@pytest.mark.parametrize(
    "mark", [pytest.mark.skip(reason="later"), pytest.mark.xfail, pytest.mark.skipif(True, reason="")]
)
def test_a_check_can_not_be_marked_to_be_passed_over(mark, monkeypatch):
    check = GistNetContract.test_G1_shape
    monkeypatch.setattr(check, "pytestmark", [], raising=False)  # a mark stays on the function: it goes after the test
    with pytest.raises(TypeError, match=rf"Mine\.test_G1_shape is marked {mark.name}"):
        type("Mine", (GistNetContract,), {"test_G1_shape": mark(check)})


def test_a_check_can_not_be_wrapped():
    wrapped = functools.wraps(GistNetContract.test_G1_shape)(lambda self: None)
    with pytest.raises(TypeError, match=r"Mine\.test_G1_shape is deleted or overridden"):
        type("Mine", (GistNetContract,), {"test_G1_shape": wrapped})


def test_known_failures_need_a_clause_and_a_reason():
    with pytest.raises(TypeError, match="G1 has no reason"):
        type("Mine", (GistNetContract,), {"known_failures": {"G1": " "}})
    with pytest.raises(UserError, match="G999: no such clause for a gistnet"):
        type("Mine", (GistNetContract,), {"known_failures": {"G999": "why not"}})


def test_every_clause_has_a_test_in_the_contract_of_its_kind():
    asked = {kind for each in every_clause().values() for kind in each.kinds}
    assert asked - {"*"} <= CONTRACTS.keys()
    for kind, contract in CONTRACTS.items():
        tests = {name for name in dir(contract) if name.startswith("test_")}
        assert tests == {each.name for each in clauses_of(kind)} | {"test_every_clause_is_checked"}


def test_clauses_are_named_after_themselves_and_have_one_check():
    with pytest.raises(ValueError, match="G1 has two checks"):
        requirement("G1", "Again", "gistnet")(lambda plugin: None)
    with pytest.raises(ValueError, match="is called <lambda>"):
        requirement("G998", "New", "gistnet")(lambda plugin: None)

    def g998_new(plugin):
        pass

    with pytest.raises(ValueError, match="G999"):
        requirement("G998", "New", "gistnet", after=("G999",))(g998_new)
    with pytest.raises(ValueError, match="wings"):
        requirement("G998", "New", "gistnet", needs="wings")(g998_new)
    assert "G998" not in every_clause()


def test_without_pytest_results_are_returned():
    for only in (["G1", "G3"], iter(["G1", "G3"])):
        results = check_plugin("gistnet.mean", only=only)
        assert [(each.clause, each.outcome) for each in results] == [("G1", "passed"), ("G3", "passed")]
    with pytest.raises(UserError, match="L1: no such clause for a gistnet"):
        check_plugin("gistnet.mean", only=["L1"])
    with pytest.raises(UserError, match=r"no plug-in offers @gistnet\.median"):
        check_plugin("gistnet.median")
    with pytest.raises(UserError, match="did you mean gistnet"):
        check_plugin("gistnets.mean")
