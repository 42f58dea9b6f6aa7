"""What goes wrong at the keyboard: one message, its place, the remedy, exit code 2, and no traceback."""

import os
import re
import stat
import tempfile

import pytest
from typer.testing import CliRunner

from mcframe.cli import train
from mcframe.cli import user_errors as failure
from mcframe.cli.app import app
from mcframe.cli.user_errors import report_user_errors
from mcframe.errors import UserError

GOOD = "include '{smoke}'\n"

# name: (what the gin file holds below the include, what stands in the message, in the remedy, line or None)
MISTAKES = {
    "unknown plug-in": (
        "run.lensnet = @lensnet.transfomer",
        "no plug-in offers @lensnet.transfomer (did you mean @lensnet.transformer?)",
        "write one of these names",
        2,
    ),
    "unknown binding": ("gpt.dept = 3", "did you mean depth", "", 2),
    "unknown group": ("contxt.window = 128", "contxt", "", 2),
    "a parameter of before": (
        "gpt.placement = 'end'",
        "gpt.placement has a new name: positions.gaussian_rope.placement",
        "Replace gpt.placement",
        2,
    ),
    "wrong type": ("gpt.depth = 'two'", "gpt.depth", "", 2),
    "not one of the choices": ("optimizer.name = 'sgd'", "optimizer.name", "", 2),
    "window and block": (
        "# a comment\ncontext.window = 130",
        "context.window: expected a multiple of context.block_size = 4, got 130",
        "Set context.window to a multiple of 4, for example 128",
        3,
    ),
    "window and tail": ("context.tail = 256", "tail", "", 2),
    "window and batch": (
        "run.batch_tokens = 1000",
        "run.batch_tokens: expected a multiple of context.window = 128, got 1000",
        "Set run.batch_tokens = 1024",
        2,
    ),
    "less than a step": ("run.total_tokens = 100", "run.total_tokens: expected at least one step", "Raise", 2),
    "tokenizer and model": (
        "gpt.vocab_size = 100",
        "the tokenizer has 257 entries but gpt.vocab_size is 100",
        "set gpt.vocab_size = 257",
        2,
    ),
    "no such include": (
        "include 'megacontxt.gin'",
        "missing gin file 'megacontxt.gin' (did you mean megacontext.gin?)",
        "",
        2,
    ),
    "not gin": ("gpt.depth = ", "", "", 2),
    "Muon and clipping": (
        "optimizer.name = 'muon'\noptimizer.gradient_clipping = 1.0",
        "gradient clipping cannot be combined with Muon",
        "Remove optimizer.gradient_clipping",
        None,
    ),
    "levels that never occur": (
        "context.levels = 3",
        "LOD 3 can never be used",
        "Set context.levels = 2, lower context.length_end",
        2,
    ),
    "bf16 without master weights": (
        "deepspeed.precision = 'bf16'",
        "expected deepspeed.zero_stage of 1 or higher, got 0",
        "Set deepspeed.zero_stage = 1",
        2,
    ),
    "offload": ("deepspeed.offload_optimizer = True", "expected deepspeed.zero_stage of 1 or higher", "Set", 2),
    "heads": ("gpt.heads = 5", "gpt.width = 64 does not divide into gpt.heads = 5", "choose gpt.heads", None),
    "untrained tokenizer": (
        "run.tokenizer = @tokenizer.bpe",
        "there is no trained tokenizer",
        "train it, once: mcframe tokenizer --gin",
        None,
    ),
}


def plain(text):
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """What the command sets before DeepSpeed is imported must not stay behind in this process."""
    for name, value in {
        "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0",
        "DS_ACCELERATOR": "cpu", "PATH": "", "COLUMNS": "400", "MCFRAME_CACHE": str(tmp_path / "cache"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_gin_file(mistake, smoke, tmp_path, capsys):
    lines, message, remedy, line = MISTAKES[mistake]
    file = tmp_path / "mine.gin"
    file.write_text(GOOD.format(smoke=smoke) + lines + "\n")
    code = train.main(["--gin", str(file), "--run-dir", str(tmp_path / "run")])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.count("mcframe stopped") == 1
    assert message in plain(err)
    assert "→ " + remedy in plain(err)
    assert line is None or f"{file}:{line} " in plain(err)
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()  # nothing was begun


def test_a_required_value_that_is_missing(tmp_path, capsys, root):
    file = tmp_path / "mine.gin"
    file.write_text("include 'megacontext.gin'\ninclude 'data/stdlib_bytes.gin'\ncontext.window = 128\n")
    assert train.main(["--gin", str(file)]) == 2
    err = plain(capsys.readouterr().err)
    assert "run.batch_tokens" in err


def test_a_place_is_that_of_the_binding_that_counts(smoke, tmp_path, capsys):
    first, second = tmp_path / "first.gin", tmp_path / "second.gin"
    first.write_text(f"include '{smoke}'\ncontext.window = 130\n")
    second.write_text("\n\ncontext.window = 131\n")
    assert train.main(["--gin", str(first), "--gin", str(second)]) == 2
    assert f"{second}:3 " in plain(capsys.readouterr().err)
    assert train.main(["--gin", str(first), "--set", "context.window = 132", "--set", "context.window = 133"]) == 2
    assert "--set 'context.window = 133'" in plain(capsys.readouterr().err)


def test_the_traceback_is_there_for_who_asks(smoke, capsys):
    with pytest.raises(UserError, match=r"gpt\.depth"):  # out of the process, where Python prints it
        train.main(["--gin", str(smoke), "--set", "gpt.depth = 'two'", "--traceback"])
    assert capsys.readouterr().err == ""


# ---- several ranks -------------------------------------------------------------------------------
@pytest.fixture
def rank(monkeypatch, tmp_path):
    """Ends the command of a rank with a message; whether the message was printed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(failure, "_RANK_0_PRINTS_FIRST_S", 0.05)

    def end(number, capsys, message="no luck"):
        monkeypatch.setenv("RANK", str(number))
        monkeypatch.setenv("WORLD_SIZE", "2")

        def fail():
            raise UserError(message)

        assert report_user_errors(fail, traceback=False) == 2
        return message in capsys.readouterr().err

    return end


def notes_of(folder):
    return folder / f"mcframe-errors-{os.getuid()}"


def test_what_rank_0_has_said_no_other_repeats(rank, capsys, tmp_path):
    assert rank(0, capsys)
    assert not rank(1, capsys)
    assert rank(1, capsys, "of this rank alone")
    assert stat.S_IMODE(notes_of(tmp_path).stat().st_mode) == 0o700
    (note,) = notes_of(tmp_path).iterdir()
    os.utime(note, (0, 0))
    assert rank(1, capsys)  # a note of long ago, by another launcher of this number, says nothing
    assert list(notes_of(tmp_path).iterdir()) == []


def test_a_note_that_cannot_be_left_replaces_no_message(rank, capsys, tmp_path):
    notes_of(tmp_path).touch()
    assert rank(0, capsys)
    assert rank(1, capsys)


def test_a_folder_that_is_not_the_users_own_is_not_written_to(rank, capsys, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    notes_of(tmp_path).symlink_to(elsewhere)
    assert rank(0, capsys)
    assert list(elsewhere.iterdir()) == []
    notes_of(tmp_path).unlink()
    notes_of(tmp_path).mkdir()
    notes_of(tmp_path).chmod(0o777)
    assert rank(0, capsys)
    assert list(notes_of(tmp_path).iterdir()) == []


def test_what_may_not_be_written_is_told_with_no_option_that_is_not_there(capsys, tmp_path):
    (tmp_path / "file").touch()
    assert report_user_errors(lambda: (tmp_path / "file" / "below").touch() or 0, traceback=False) == 2
    told = plain(capsys.readouterr().err)
    assert f"{tmp_path / 'file' / 'below'}: Not a directory → Pass another path to this command" in told
    assert "--run-dir" not in told


# ---- through the script itself -------------------------------------------------------------------
@pytest.mark.launcher
def test_the_script_says_what_is_wrong_and_nothing_else(launches, tmp_path):
    result = launches.run(gin=tmp_path / "smoke.gin")
    assert result.code == 2
    assert result.output.splitlines()[0].startswith("╭─ mcframe stopped")
    assert "missing gin file" in result.words
    assert "searched" in result.words
    assert not result.run_dir.exists()


@pytest.mark.launcher
def test_an_empty_corpus(launches, tmp_path):
    """Found when the text is read, which is after the engine has started."""
    result = launches.run("run.text = @text.local_files", f"text.local_files.paths = {str(tmp_path)!r}")
    assert result.code == 2, result.output[-6000:]
    assert f"there is no .txt, .md, .py, .jsonl, .parquet file in {tmp_path}" in result.words
    assert "text.local_files.paths" in result.words
    assert "Traceback" not in result.output


@pytest.mark.launcher
def test_two_ranks_say_it_once(launches):
    result = launches.shared("run.batch_tokens = 1152", ranks=2, launcher=True)
    assert result.code == 2, result.output[-6000:]
    assert result.output.count("mcframe stopped") == 1
    assert "--set 'run.batch_tokens = 1152'" in result.words


@pytest.mark.parametrize("forgotten", [["gin/smoke.gin"], ["--set", "run.seed = 1", "gin/smoke.gin"], []])
def test_a_run_without_a_gin_file_says_how_to_name_one(forgotten):
    result = CliRunner().invoke(app, ["run", *forgotten])
    assert result.exit_code == 2
    assert f"mcframe run --gin {forgotten[-1] if forgotten else 'gin/quickstart.gin'}" in result.output


def test_ctrl_c_ends_a_command_in_a_word(capsys):
    def pressed():
        raise KeyboardInterrupt

    assert report_user_errors(pressed, traceback=False) == 130
    assert capsys.readouterr().err == "interrupted\n"
    with pytest.raises(KeyboardInterrupt):
        report_user_errors(pressed, traceback=True)
