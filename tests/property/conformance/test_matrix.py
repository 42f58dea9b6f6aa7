"""The matrix: which cases cover all pairs, what the table says, and what ends with an error."""

import itertools
import json
import signal
import subprocess
import sys
import venv
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from mcframe.cli.app import app
from mcframe.cli.matrix import read_settings
from mcframe.config.run_config import all_plugins
from mcframe.data.sources import StandardLibrary
from mcframe.errors import UserError
from mcframe.hookspecs import hookimpl
from mcframe.registry.discovery import PluginOptions
from mcframe.registry.plugins import Registered
from mcframe.testing.checking import Result
from mcframe.testing.cross import LEVELS, SLOTS, covering, crossing, offered
from mcframe.testing.matrix import Plan, Row, run_matrix
from mcframe.testing.matrix_table import cells, complaints, write
from mcframe.testing.reference import LinearGistNet


@given(st.lists(st.integers(1, 5), min_size=2, max_size=4))
def test_every_pair_meets(sizes):
    kinds = ("gistnet", "lensnet", "allocator", "variants")
    names = {kind: [f"{kind}{n}" for n in range(size)] for kind, size in zip(kinds, sizes, strict=False)}
    cases = covering(names)
    rows = [(*(name for _, name in case.parts), case.slots, case.levels) for case in cases]
    factors = [*names.values(), SLOTS, LEVELS]
    for one, other in itertools.combinations(range(len(factors)), 2):
        met = {(row[one], row[other]) for row in rows}
        assert met == set(itertools.product(factors[one], factors[other]))
    # Far fewer than all of them.
    assert len(rows) <= 3 * max(len(a) * len(b) for a, b in itertools.combinations(factors, 2))


def test_nothing_is_covered_where_a_kind_is_missing():
    assert covering({"gistnet": ["mean"], "lensnet": []}) == []


def test_a_case_chooses_every_part():
    (case, *_) = covering({"gistnet": ["mean"], "variants": ["none"]})
    assert case.training.steps == 1
    assert case.training.settings[:2] == ("run.gistnet = @gistnet.mean", "run.variants = @variants.none")
    assert set(case.training.settings[2:]) <= {f"context.{n} = {v}" for n in ("slots", "levels") for v in (1, 2)}


def test_what_is_asked_for_is_crossed_with_all_others_as_they_need_it():
    file = str(Path(__file__).resolve().parents[2] / "support" / "broken_in_runs.py")
    registry = all_plugins(PluginOptions((file,)))
    ours = registry.implementations["gistnet"]["broken_sound"]
    cases = crossing(registry, [ours], {"lensnet.mlp": ["lensnet.mlp.hidden = 6"]}, {"allocator.greedy"})
    for kind, names in offered(registry).items():
        wanted = {"broken_sound"} if kind == "gistnet" else {*names} - {"greedy"}
        assert {dict(case.parts)[kind] for case in cases} == wanted
    for case in cases:
        assert ("lensnet.mlp.hidden = 6" in case.training.settings) == (("lensnet", "mlp") in case.parts)
        assert case.training.plugins == (file,)
    text = registry.implementations["text"]["standard_library"]
    assert crossing(registry, [text], {}, ()) == []


class Linear(LinearGistNet):
    """Maps means, by a file of weights.

    path  of the file
    """

    def __init__(self, shape, path: str) -> None:
        super().__init__(shape)


class Shown(Linear):
    """Maps means, by the file of weights at path; says how it can be tried."""

    @staticmethod
    def example_settings(folder):
        return {"path": "weights.pt"}


class Spoilt(Linear):
    """Maps means, by the file of weights at path; its example does not work."""

    @staticmethod
    def example_settings(folder):
        raise OSError


def test_parts_are_crossed_with_their_examples_and_only_where_they_can_be_built():
    registry = all_plugins()
    for each in (Linear, Shown, Spoilt):
        name = each.__name__.lower() + "_by_file"
        registry.implementations["gistnet"][name] = Registered("gistnet", name, each, "here")
    asked = list(registry.implementations["gistnet"].values())

    def bound(settings):
        cases = crossing(registry, asked, settings, {"gistnet.mean"})
        return {dict(case.parts)["gistnet"]: [one for one in case.settings if "by_file" in one] for case in cases}

    shown = {"shown_by_file": ["gistnet.shown_by_file.path = 'weights.pt'"]}
    assert {name: each for name, each in bound({}).items() if "by_file" in name} == shown
    assert "mean" not in bound({})
    given = ["gistnet.linear_by_file.path = 'mine.pt'"]
    assert bound({"gistnet.linear_by_file": given})["linear_by_file"] == given


ROWS = [
    Row("gistnet.good", "ours", [Result("G1", "It is", "passed"), Result("G2", "It has", "skipped", "no need")], 1.5),
    Row("gistnet.bad", "theirs", [Result("G1", "It is", "failed", "it is\nnot")], 2.5, seconds=3.25),
    Row("text.far", "ours", error="reads the network", left_out=True),
    Row("good × none, 1 slot(s), 1 level(s)", "", loss=None, error="it ended with code 1: ...boom"),
]


class Far(StandardLibrary):
    """Documents of a server that is not there."""

    def __init__(self) -> None:
        raise UserError("the server does not answer", remedy="start it")


class Named(StandardLibrary):
    """Documents of a file.

    path  of the file
    """

    def __init__(self, path: str) -> None:
        pass


@hookimpl
def register_plugins(register):
    register("far", Far)
    register("named", Named)


def test_what_was_never_built_is_not_said_to_conform(registry_of):
    registry = registry_of(sys.modules[__name__])
    entries = list(registry.implementations["text"].values())
    far, named = run_matrix(registry, entries, Plan(), lambda line: None)
    assert (far.failed, far.loss) == (True, None)
    assert far.seconds == sum(each.seconds for each in far.results) > 0
    (said,) = [each.message for each in far.of("failed") if each.clause == "P8"]
    assert "it cannot be built here: the server does not answer" in said
    assert (named.left_out, named.error) == (True, "it needs a setting: text.named.path")
    assert [each.clause for each in named.of("failed")] == ["P6"]


def test_the_table_counts_and_names_what_failed(tmp_path):
    assert [row.failed for row in ROWS] == [False, True, False, True]
    assert cells(ROWS[0]) == ("gistnet.good", "ours", "1", "0", "1", "0.0", "1.500")
    assert cells(ROWS[1]) == ("gistnet.bad", "theirs", "0", "1: G1", "0", "3.2", "2.500")
    assert cells(ROWS[2])[-1] == "reads the network"
    assert complaints(ROWS) == [
        "gistnet.bad breaks G1, It is: it is\nnot",
        "good × none, 1 slot(s), 1 level(s): it ended with code 1: ...boom",
    ]
    data, page = write(tmp_path / "new", ROWS, 12.0)
    facts = json.loads(data.read_text())
    assert [row["name"] for row in facts["rows"] if row["failed"]] == [ROWS[1].name, ROWS[3].name]
    assert facts["rows"][1]["results"][0]["message"] == "it is\nnot"
    lines = page.read_text().splitlines()
    assert lines[2].count("|") == lines[3].count("|") == lines[4].count("|") == 8
    assert "| gistnet.good | ours | 1 | 0 | 1 | 0.0 | 1.500 |" in lines
    assert "- gistnet.bad breaks G1, It is: it is not" in lines


def told(*arguments):
    result = CliRunner().invoke(app, ["plugins", "matrix", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


@pytest.mark.parametrize("content", ["[", '["gistnet.mean"]\nsettings = []', '["gistnet.mean"]\nset = "one"'])
def test_settings_that_are_no_settings_are_told(tmp_path, content):
    file = tmp_path / "settings.toml"
    file.write_text(content)
    assert "cannot be read as settings of the matrix" in told("gistnet.mean", "--settings", str(file))


def test_names_that_nobody_has_are_told(tmp_path):
    assert "no plug-in is called gistnet.meen (did you mean gistnet.mean?)" in told("gistnet.meen")
    assert "no plug-in comes from a package called mcfram" in told("--package", "mcfram")


@pytest.mark.matrix
@pytest.mark.launcher
def test_ctrl_c_ends_the_trainings_too(tmp_path):
    command = [sys.executable, "-m", "mcframe", "plugins", "matrix", "gistnet.mean", "--out", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert any("training 1 of" in line for line in process.stdout)
        below = psutil.Process(process.pid).children(recursive=True)
        assert below
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    _, alive = psutil.wait_procs(below, timeout=20)
    assert alive == []


@pytest.mark.matrix
@pytest.mark.launcher
def test_one_that_fails_fails_the_matrix_by_name(tmp_path):
    file = str(Path(__file__).resolve().parents[2] / "support" / "broken_in_runs.py")
    names = ("gistnet.broken_sound", "gistnet.broken_forgetful")
    arguments = ["plugins", "matrix", *names, "--plugin", file, "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 1, result.output
    assert "failed: gistnet.broken_forgetful" in result.output
    facts = json.loads((tmp_path / "out" / "matrix.json").read_text())
    failed = {
        row["name"]: [each["clause"] for each in row["results"] if each["outcome"] == "failed"] for row in facts["rows"]
    }
    assert failed == {"gistnet.broken_sound": [], "gistnet.broken_forgetful": ["R3"]}


def test_our_own_parts_are_crossed():
    names = offered(all_plugins())
    assert all(len(each) > 1 for each in names.values())


def test_the_settings_are_of_plugins_that_there_are(root):
    offered = {f"{each.kind}.{each.name}" for kind in all_plugins().implementations.values() for each in kind.values()}
    assert read_settings(root / "tests/support/settings.toml").keys() <= offered


def test_an_environment_borrows_packages(root, tmp_path):
    for name in ("lender", "borrower"):
        venv.create(tmp_path / name)
    (packages,) = (tmp_path / "lender").glob("lib/python*/site-packages")
    (packages / "lent.py").write_text("")
    python = tmp_path / "borrower/bin/python"
    borrow = [python, root / "tests/support/borrow.py"]
    missing = subprocess.run([*borrow, tmp_path / "nobody"], capture_output=True, text=True)
    assert missing.returncode == 1
    assert "run `tox -e tests --notest` first" in missing.stderr
    subprocess.run([*borrow, tmp_path / "lender"], check=True)
    subprocess.run([python, "-c", "import lent"], check=True)
