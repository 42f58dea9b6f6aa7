"""`mcframe plugins check`: output and exit code."""

import json

import pytest
from typer.testing import CliRunner

from mcframe.cli.app import app
from mcframe.testing import all_requirements

PLUGINS = '''
from mcframe.errors import UserError
from mcframe.hookspecs import TextSource, hookimpl
from mcframe.testing.reference import LinearGistNet

mcframe_api = "0.1"


class OneSlot(LinearGistNet):
    """Makes one slot for every tree."""

    def forward(self, children, lod):
        return super().forward(children, lod)[:, :, :1]


class Far(TextSource):
    """Documents of a server that does not answer."""

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
    """Documents of the file at path; declares an example."""

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
    """Documents of the file at path; its example raises an error."""

    @staticmethod
    def example_settings(folder):
        return {"path": str(folder / str(1 // 0))}


class Silent(Shown):
    """Documents of the file at path; its example returns None."""

    @staticmethod
    def example_settings(folder):
        pass


@hookimpl
def register_plugins(register):
    register("one_slot", OneSlot)
    for each in (Far, Named, Shown, Spoilt, Silent):
        register(each.__name__.lower(), each)
'''


@pytest.fixture
def check(monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    file = tmp_path / "plugins.py"
    file.write_text(PLUGINS)

    def run(*arguments):
        result = CliRunner().invoke(app, ["plugins", "check", *arguments, "--plugin", str(file)])
        return result.exit_code, result.output

    return run


def rows(output):
    return {
        line.split()[1]: line.split()[3] for line in output.splitlines() if line.startswith(("│ gistnet", "│ text"))
    }


def failures(output):
    (results,) = json.loads(output).values()
    return {each["requirement"]: each["message"] for each in results if each["outcome"] == "failed"}


def test_prints_every_requirement_of_one_plugin(check):
    code, output = check("gistnet.mean")
    assert code == 0
    for text in ("P1", "G1", "passed", "skipped: it has no parameters"):
        assert text in output


def test_prints_failures_and_a_summary_of_several(check):
    code, output = check("one_slot", "mean", "text.named")
    assert code == 1
    assert "G1 failed: children" in output
    assert rows(output) == {"gistnet.one_slot": "no", "gistnet.mean": "yes", "text.named": "unchecked"}
    assert "text.named is unchecked: it needs a setting: text.named.path" in output


CHATTY = """
from mcframe.hookspecs import Schedule, hookimpl

print("imported")


class Chatty(Schedule):
    def __init__(self) -> None:
        print("built")

    def factor(self, step: int, total_steps: int) -> float:
        return 1.0


@hookimpl
def register_plugins(register):
    register("chatty", Chatty)
"""


def test_output_of_a_plugin_is_no_part_of_the_json(tmp_path):
    file = tmp_path / "chatty.py"
    file.write_text(CHATTY)
    result = CliRunner().invoke(app, ["plugins", "check", "schedule.chatty", "--json", "--plugin", str(file)])
    assert {"imported", "built"} <= set(result.stderr.splitlines())
    assert "schedule.chatty" in json.loads(result.stdout)


def test_example_settings_are_used_unless_they_are_set(check):
    code, output = check("text.shown", "--json")
    assert (code, failures(output)) == (0, {})
    code, output = check("text.shown", "--json", "--set", "text.shown.path = 'nowhere.txt'")
    assert (code, list(failures(output))) == (1, ["D1"])


@pytest.mark.parametrize(
    ("name", "detail"),
    [
        ("text.spoilt", "raised ZeroDivisionError"),
        ("text.silent", "returned None"),
        ("text.far", "the server does not answer"),
    ],
)
def test_plugin_that_cannot_be_built_fails_once(check, name, detail):
    code, output = check(name, "--json")
    assert (code, list(failures(output))) == (1, ["P6"])
    assert detail in failures(output)["P6"]
    line = 1 + PLUGINS.splitlines().index('        return {"path": str(folder / str(1 // 0))}')
    assert name != "text.spoilt" or f"plugins.py:{line}" in failures(output)["P6"]


def test_json_holds_all_fields(check):
    code, output = check("lensnet.recency", "--json")
    assert code == 0
    results = json.loads(output)["lensnet.recency"]
    assert {"requirement", "title", "outcome", "message", "seconds"} == results[0].keys()


@pytest.mark.parametrize(
    ("arguments", "detail"),
    [
        ([], "--all"),
        (["gistnet.mean", "--all"], "--all"),
        (["gistnet.median"], "gistnet.mean"),
        (["mean_"], "kind.name"),
        (["transformer"], "lensnet.transformer"),
        (["gistnet.mean", "--set", "context.tail = 16"], "--slow"),
        (["gistnet.transformer", "--set", "gistnet.transformer.layrs = 3"], "did you mean layers"),
    ],
)
def test_mistake_ends_with_code_2(check, arguments, detail):
    code, output = check(*arguments)
    assert code == 2
    assert detail in " ".join(output.replace("│", " ").split())


def test_real_runs_receive_all_bindings(check, monkeypatch):
    all_requirements()  # imports the module
    trainings = []
    monkeypatch.setattr("mcframe.testing.runs.trained", lambda *requested: trainings.extend(requested) or 1 / 0)
    settings = ("context.tail = 17", "task.induction.length = 2")
    check("task.induction", "--slow", *(part for each in settings for part in ("--set", each)))
    assert set(settings) <= set(trainings[0].settings)


def test_settings_and_width_build_the_plugin(check):
    heads = ("--set", "lensnet.transformer.heads = 3", "--json")
    code, output = check("lensnet.transformer", *heads)
    assert (code, list(failures(output))) == (1, ["P6"])
    assert check("lensnet.transformer", *heads, "--width", "12")[0] == 0
