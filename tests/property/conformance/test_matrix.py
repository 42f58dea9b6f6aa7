"""The matrix: combinations that cover all pairs, its tables, and its errors."""

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
from mcframe.testing.kinds import MODEL_PARTS
from mcframe.testing.matrix import LEVELS, SLOTS, Plan, Row, combinations, covering, run_matrix
from mcframe.testing.matrix_report import cells, summary, write
from mcframe.testing.reference import LinearGistNet


@given(st.lists(st.integers(1, 5), min_size=2, max_size=4))
def test_every_pair_meets(sizes):
    names = {kind: [f"{kind}{n}" for n in range(size)] for kind, size in zip(MODEL_PARTS, sizes, strict=False)}
    cases = covering(names)
    rows = [(*(name for _, name in case.parts), case.slots, case.levels) for case in cases]
    factors = [*names.values(), SLOTS, LEVELS]
    for one, other in itertools.combinations(range(len(factors)), 2):
        met = {(row[one], row[other]) for row in rows}
        assert met == set(itertools.product(factors[one], factors[other]))
    # Far fewer than all combinations.
    assert len(rows) <= 3 * max(len(a) * len(b) for a, b in itertools.combinations(factors, 2))


def test_missing_kind_makes_no_case():
    assert covering({"gistnet": ["mean"], "lensnet": []}) == []


def test_case_selects_every_part():
    (case, *_) = covering({"gistnet": ["mean"], "variants": ["none"]})
    assert case.training.steps == 1
    assert case.training.settings[:2] == ("run.gistnet = @gistnet.mean", "run.variants = @variants.none")
    assert set(case.training.settings[2:]) <= {f"context.{n} = {v}" for n in ("slots", "levels") for v in (1, 2)}


def test_selected_plugins_meet_all_others_with_their_settings():
    file = str(Path(__file__).resolve().parents[2] / "support" / "broken_in_runs.py")
    registry = all_plugins(PluginOptions((file,)))
    ours = registry.implementations["gistnet"]["broken_sound"]
    cases = combinations(registry, [ours], {"lensnet.mlp": ["lensnet.mlp.hidden = 6"]}, {"allocator.greedy"})
    for kind in MODEL_PARTS:
        expected = {"broken_sound"} if kind == "gistnet" else {*registry.implementations[kind]} - {"greedy"}
        assert {dict(case.parts)[kind] for case in cases} == expected
    for case in cases:
        assert ("lensnet.mlp.hidden = 6" in case.training.settings) == (("lensnet", "mlp") in case.parts)
        assert case.training.plugins == (file,)
    text = registry.implementations["text"]["standard_library"]
    assert combinations(registry, [text], {}, ()) == []


class Linear(LinearGistNet):
    """Maps means, by a file of weights.

    path  of the file
    """

    def __init__(self, shape, path: str) -> None:
        super().__init__(shape)


class Shown(Linear):
    """Maps means, by the file of weights at path; declares an example."""

    @staticmethod
    def example_settings(folder):
        return {"path": "weights.pt"}


class Spoilt(Linear):
    """Maps means, by the file of weights at path; its example does not work."""

    @staticmethod
    def example_settings(folder):
        raise OSError


def test_parts_meet_with_their_examples_if_they_can_be_built():
    registry = all_plugins()
    for each in (Linear, Shown, Spoilt):
        name = each.__name__.lower() + "_by_file"
        registry.implementations["gistnet"][name] = Registered("gistnet", name, each, "here")
    selected = list(registry.implementations["gistnet"].values())

    def bound(settings):
        cases = combinations(registry, selected, settings, {"gistnet.mean"})
        return {dict(case.parts)["gistnet"]: [one for one in case.settings if "by_file" in one] for case in cases}

    shown = {"shown_by_file": ["gistnet.shown_by_file.path = 'weights.pt'"]}
    assert {name: each for name, each in bound({}).items() if "by_file" in name} == shown
    assert "mean" not in bound({})
    own = ["gistnet.linear_by_file.path = 'mine.pt'"]
    assert bound({"gistnet.linear_by_file": own})["linear_by_file"] == own


ROWS = [
    Row("gistnet.good", "ours", [Result("G1", "It is", "passed"), Result("G2", "It has", "skipped", "no need")], 1.5),
    Row("gistnet.bad", "theirs", [Result("G1", "It is", "failed", "it is\nnot")], 2.5, seconds=3.25),
    Row("text.far", "ours", error="reads the network", skipped=True),
    Row("good × none, 1 slot(s), 1 level(s)", "", loss=None, error="it ended with code 1: ...boom"),
]


class Far(StandardLibrary):
    """Documents of a server that does not answer."""

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


def test_plugin_that_was_not_built_does_not_conform(registry_of):
    registry = registry_of(sys.modules[__name__])
    entries = list(registry.implementations["text"].values())
    far, named = run_matrix(registry, entries, Plan(), lambda line: None)
    assert (far.failed, far.loss) == (True, None)
    assert far.seconds == sum(each.seconds for each in far.results) > 0
    assert [each.requirement for each in far.of("failed")] == ["P4", "P6"]
    assert (named.skipped, named.error) == (True, "it needs a setting: text.named.path")
    assert [each.requirement for each in named.of("failed")] == ["P4"]


def test_reports_count_results_and_name_failures(tmp_path):
    assert [row.failed for row in ROWS] == [False, True, False, True]
    assert cells(ROWS[0]) == ("gistnet.good", "1", "0", "1", "0", "1.500")
    assert cells(ROWS[1]) == ("gistnet.bad", "0", "1", "0", "3", "2.500")
    lines = summary(ROWS, 12.0)
    assert lines[0] == "0 of 1 combinations train"
    assert lines[1] == "text.far was skipped: reads the network"
    assert lines[-1] == f"4 rows in 12 s, failed: gistnet.bad, {ROWS[3].name}"
    data, page = write(tmp_path / "new", ROWS, 12.0)
    facts = json.loads(data.read_text())
    assert [row["name"] for row in facts["rows"] if row["failed"]] == [ROWS[1].name, ROWS[3].name]
    assert facts["rows"][1]["results"][0]["message"] == "it is\nnot"
    assert {f"- {line}" for line in lines} <= {*page.read_text().splitlines()}
    assert "| gistnet.good | 1 | 0 | 1 | 0 | 1.500 |" in page.read_text()


def error_of(*arguments):
    result = CliRunner().invoke(app, ["plugins", "matrix", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


@pytest.mark.parametrize("content", ["[", '["gistnet.mean"]\nsettings = []', '["gistnet.mean"]\nset = "one"'])
def test_invalid_settings_are_an_error(tmp_path, content):
    file = tmp_path / "settings.toml"
    file.write_text(content)
    assert "settings of the matrix" in error_of("gistnet.mean", "--settings", str(file))


def test_unknown_names_are_an_error():
    assert "did you mean gistnet.mean?" in error_of("gistnet.meen")
    assert "unknown package mcfram" in error_of("--package", "mcfram")


@pytest.mark.matrix
@pytest.mark.launcher
def test_ctrl_c_ends_the_trainings(tmp_path):
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
def test_failure_is_reported_by_name(tmp_path):
    file = str(Path(__file__).resolve().parents[2] / "support" / "broken_in_runs.py")
    names = ("gistnet.broken_sound", "gistnet.broken_forgetful")
    arguments = ["plugins", "matrix", *names, "--plugin", file, "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 1, result.output
    assert "failed: gistnet.broken_forgetful" in result.output
    facts = json.loads((tmp_path / "out" / "matrix.json").read_text())
    failed = {
        row["name"]: [each["requirement"] for each in row["results"] if each["outcome"] == "failed"]
        for row in facts["rows"]
    }
    assert failed == {"gistnet.broken_sound": [], "gistnet.broken_forgetful": ["R2"]}


def test_every_kind_of_a_model_has_several_plugins():
    assert all(len(all_plugins().implementations[kind]) > 1 for kind in MODEL_PARTS)


def test_settings_name_existing_plugins(root):
    known = {f"{each.kind}.{each.name}" for kind in all_plugins().implementations.values() for each in kind.values()}
    assert read_settings(root / "tests/support/settings.toml").keys() <= known


def test_environment_borrows_packages(root, tmp_path):
    for name in ("lender", "borrower"):
        venv.create(tmp_path / name)
    (packages,) = (tmp_path / "lender").glob("lib/python*/site-packages")
    (packages / "lent.py").write_text("")
    python = tmp_path / "borrower/bin/python"
    borrow = [python, root / "tests/support/borrow.py"]
    missing = subprocess.run([*borrow, tmp_path / "missing"], capture_output=True, text=True)
    assert missing.returncode == 1
    assert "run `tox -e tests --notest` first" in missing.stderr
    subprocess.run([*borrow, tmp_path / "lender"], check=True)
    subprocess.run([python, "-c", "import lent"], check=True)
