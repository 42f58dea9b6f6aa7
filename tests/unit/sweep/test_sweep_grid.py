"""Grid files: defaults, values, and the lines of mistakes."""

import re
from pathlib import Path

import pytest

from mcframe.errors import UserError
from mcframe.sweep.grid import METRICS, Row, read_grid

GOOD = """\
gin = ["smoke.gin"]
tokens = 4096

[rows]
one = []
two = ["run.gistnet = @gistnet.mean"]
"""


@pytest.fixture
def read(tmp_path):
    def of(text):
        (tmp_path / "grid.toml").write_text(text, "utf-8")
        return read_grid(tmp_path / "grid.toml")

    return of


def test_defaults(read):
    grid = read(GOOD)
    assert grid.rows == {"one": Row("one"), "two": Row("two", ("run.gistnet = @gistnet.mean",))}
    assert (grid.seeds, grid.baseline, grid.metrics, grid.threads, grid.ranks) == ((0,), "one", METRICS, 1, 1)
    assert (grid.gin, grid.set, grid.evaluate, grid.average) == (("smoke.gin",), (), None, 0.1)


def test_every_key(read):
    grid = read(
        'gin = ["a.gin"]\nset = ["x.y = 1"]\ntokens = 8\nseeds = [3, 1]\nbaseline = "b"\nmetrics = ["val/bpb"]\n'
        "average = 0.5\nevaluate = ['--windows', '8']\nthreads = 2\nranks = 3\n"
        '[rows]\na = []\n[rows.b]\nfrom = "a"\nset = ["x.z = 2"]\n'
    )
    assert grid.rows["b"] == Row("b", ("x.z = 2",), "a")
    assert (grid.seeds, grid.baseline, grid.metrics, grid.average) == ((3, 1), "b", ("val/bpb",), 0.5)
    assert (grid.evaluate, grid.threads, grid.ranks, grid.set) == (("--windows", "8"), 2, 3, ("x.y = 1",))
    assert read("evaluate = true\n" + GOOD).evaluate == ()
    assert read("evaluate = false\n" + GOOD).evaluate is None


def test_gin_file_next_to_the_grid_comes_before_a_preset(read, tmp_path):
    (tmp_path / "smoke.gin").write_text("")
    assert read(GOOD).gin == (str(tmp_path / "smoke.gin"),)


WRONG = {
    "unknown key": (GOOD.replace("tokens", "token"), 2, "token (did you mean tokens?)"),
    "unknown key of a row": (
        GOOD + '[rows.three]\nform = "one"\n', 8, "rows three form (did you mean from?)"
    ),
    "not TOML": (GOOD.replace("4096", "4 096"), 2, "expected TOML"),
    "no tokens": (GOOD.replace("tokens = 4096\n", ""), None, "missing tokens"),
    "no rows": (GOOD.partition("one")[0], 4, "rows"),
    "type": (GOOD.replace("4096", "'many'"), 2, "tokens: Input should be a valid integer, got 'many'"),
    "a bool is no number": (GOOD.replace("4096", "true"), 2, "got True"),
    "row type": (GOOD.replace("one = []", "one = 3"), 5, "rows one: expected a list"),
    "range": (GOOD.replace("4096", "-1"), 2, "greater than or equal to 1, got -1"),
    "seeds twice": (GOOD.replace("\n[", "seeds = [0, 0]\n["), 3, "seeds: expected different values"),
    "binds nothing": (GOOD + 'three = ["run.gistnet"]\n', 7, "got 'run.gistnet'"),
    "seed in a row": (GOOD + 'three = ["run.seed = 3"]\n', 7, "expected seeds at the top"),
    "tokens in all": (GOOD.replace("\n[", 'set = ["run.total_tokens=3"]\n['), 3, "expected tokens at the top"),
    "baseline": (GOOD.replace("\n[", 'baseline = "tow"\n['), 3, "baseline: unknown row 'tow' (did you mean two?)"),
    "row name": (GOOD + '"a/b" = []\n', 7, "got 'a/b'"),
    "row above": (GOOD + '".." = []\n', 7, "got '..'"),
    "from nowhere": (
        GOOD + '[rows.c]\nfrom = "tow"\n', 8, "row c: unknown row 'tow' (did you mean two?)"
    ),
    "from itself": (GOOD + '[rows.c]\nfrom = "c"\n', None, "rows start from each other: c from c"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_mistake_has_a_line_and_a_remedy(read, name):
    text, line, message = WRONG[name]
    with pytest.raises(UserError, match=re.escape(message)) as error:
        read(text)
    assert error.value.location is not None
    assert error.value.location.file.name == "grid.toml"
    assert line is None or error.value.location.line == line
    assert error.value.remedy


def test_missing_grid():
    with pytest.raises(UserError, match=r"nowhere\.toml cannot be read"):
        read_grid(Path("nowhere.toml"))


def test_presets_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "transformer" in read_grid(Path("gin/sweeps/gists.toml")).rows
    assert read_grid(Path("sweeps/gists.toml")).baseline == "transformer"
