"""`mcframe plugins check`: what it prints and with which code it ends."""

import json

import pytest
from typer.testing import CliRunner

from mcframe.cli.app import app
from mcframe.testing import every_clause

BAD = '''
from mcframe.hookspecs import hookimpl
from mcframe.testing.reference import LinearGistNet

mcframe_api = "0.1"


class OneSlot(LinearGistNet):
    """Makes one slot, however many there are."""

    def forward(self, children, lod):
        return super().forward(children, lod)[:, :, :1]


@hookimpl
def register_plugins(register):
    register("one_slot", OneSlot)
'''


@pytest.fixture
def check(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        result = CliRunner().invoke(app, ["plugins", "check", *arguments])
        return result.exit_code, result.output

    return run


def test_one_that_conforms_is_told_clause_by_clause(check):
    code, output = check("gistnet.mean")
    assert code == 0
    for text in ("P1", "G1", "passed", "skipped: it has no parameters"):
        assert text in output


def test_one_that_does_not_is_told_with_what_was_seen(check, tmp_path):
    (tmp_path / "bad.py").write_text(BAD)
    code, output = check("one_slot", "mean", "--plugin", str(tmp_path / "bad.py"))
    assert code == 1
    assert "G1" in output
    assert "not [3, 1, 2, 16]" in output
    rows = {line.split()[1]: line.split()[3] for line in output.splitlines() if line.startswith("│ gistnet.")}
    assert rows == {"gistnet.one_slot": "no", "gistnet.mean": "yes"}


WAITS = '''
from mcframe.errors import UserError
from mcframe.hookspecs import TextSource, hookimpl

mcframe_api = "0.1"


class Far(TextSource):
    """Documents of a server that is not there."""

    identity = "far-1"

    def __init__(self) -> None:
        raise UserError("the server does not answer", remedy="start it")

    def documents(self, epoch=0):
        yield "one"


class Named(Far):
    """Documents of a file.

    path  of the file
    """

    def __init__(self, path: str) -> None:
        pass


class Shown(Named):
    """Documents of the file at path; says how it can be tried."""

    def __init__(self, path: str) -> None:
        self.path = path

    def documents(self, epoch=0):
        with open(self.path) as file:
            yield file.read()

    @staticmethod
    def example_settings(folder):
        (folder / "one.txt").write_text("one")
        return {"path": str(folder / "one.txt")}


class Spoilt(Shown):
    """Documents of the file at path; its example does not work."""

    @staticmethod
    def example_settings(folder):
        return {"path": str(folder / str(1 // 0))}


class Silent(Shown):
    """Documents of the file at path; its example says nothing."""

    @staticmethod
    def example_settings(folder):
        pass


@hookimpl
def register_plugins(register):
    for each in (Far, Named, Shown, Spoilt, Silent):
        register(each.__name__.lower(), each)
'''


def failed(output, name):
    return {each["clause"]: each["message"] for each in json.loads(output)[name] if each["outcome"] == "failed"}


def test_one_that_needs_a_setting_is_tried_with_its_example(check, tmp_path):
    file = tmp_path / "waits.py"
    file.write_text(WAITS)
    code, output = check("text.shown", "--plugin", str(file), "--json")
    assert (code, {each["outcome"] for each in json.loads(output)["text.shown"]}) == (0, {"passed"})
    code, output = check("text.shown", "--plugin", str(file), "--json", "--set", "text.shown.path = 'nowhere.txt'")
    assert (code, list(failed(output, "text.shown"))) == (1, ["D1"])
    assert "nowhere.txt" in failed(output, "text.shown")["D1"]


def test_an_example_that_does_not_work_is_told_once_and_where(check, tmp_path):
    file = tmp_path / "waits.py"
    file.write_text(WAITS)
    for name, said in (
        ("text.spoilt", "raised ZeroDivisionError"),
        ("text.silent", "returned None; it returns a dict"),
    ):
        code, output = check(name, "--plugin", str(file), "--json")
        assert (code, list(failed(output, name))) == (1, ["P8"])
        assert f"its example_settings {said}" in failed(output, name)["P8"]
    code, output = check("text.spoilt", "--plugin", str(file), "--json")
    line = 1 + WAITS.splitlines().index('        return {"path": str(folder / str(1 // 0))}')
    assert f"waits.py:{line}" in failed(output, "text.spoilt")["P8"]


def test_one_that_was_never_built_does_not_pass_for_one_that_conforms(check, tmp_path):
    file = tmp_path / "waits.py"
    file.write_text(WAITS)
    code, output = check("text.named", "text.standard_library", "--plugin", str(file))
    rows = {line.split()[1]: line.split()[3] for line in output.splitlines() if line.startswith("│ text.")}
    assert (code, rows) == (0, {"text.named": "unchecked", "text.standard_library": "yes"})
    assert "text.named is unchecked: it needs a setting: text.named.path" in output
    code, output = check("text.far", "--plugin", str(file))
    assert code == 1
    assert "it cannot be built here: the server does not answer" in output
    code, output = check("text.far", "--plugin", str(file), "--json")
    assert (code, list(failed(output, "text.far"))) == (1, ["P8"])


def test_json_is_for_machines(check):
    code, output = check("lensnet.recency", "--json")
    assert code == 0
    results = json.loads(output)["lensnet.recency"]
    assert {"clause", "title", "outcome", "message", "seconds"} == results[0].keys()
    assert {each["outcome"] for each in results} == {"passed", "skipped"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no plug-in is named"),
        (["gistnet.mean", "--all"], "two things"),
        (["gistnet.median"], "gistnet.mean"),
        (["mean_"], "no name of a plug-in"),
        (["transformer"], "gistnet.transformer"),
    ],
)
def test_what_cannot_be_checked_is_said(check, arguments, said):
    code, output = check(*arguments)
    assert code == 2
    assert said in output


def test_a_binding_that_nothing_would_read_is_refused(check):
    code, output = check("gistnet.mean", "--set", "context.tail = 16")
    assert code == 2
    assert "context.tail changes nothing here" in output
    assert "--slow" in output
    code, output = check("gistnet.transformer", "--set", "gistnet.transformer.layrs = 3")
    assert code == 2
    assert "did you mean layers" in output


def test_real_runs_read_what_else_is_bound(check, monkeypatch):
    every_clause()  # loads the module
    trainings = []
    monkeypatch.setattr("mcframe.testing.in_training.trained", lambda *asked: trainings.extend(asked) or 1 / 0)
    settings = ("context.tail = 17", "task.induction.length = 2")
    check("task.induction", "--slow", *(part for each in settings for part in ("--set", each)))
    assert trainings
    assert set(settings) <= set(trainings[0].settings)


def test_settings_and_width_are_what_it_is_built_with(check):
    heads = ("--set", "lensnet.transformer.heads = 3", "--json")
    code, output = check("lensnet.transformer", *heads)
    assert code == 1
    (failed,) = [each for each in json.loads(output)["lensnet.transformer"] if each["outcome"] == "failed"]
    assert failed["clause"] == "P8"
    assert "heads = 3 does not divide" in failed["message"]
    assert check("lensnet.transformer", *heads, "--width", "12")[0] == 0
