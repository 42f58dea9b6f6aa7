"""Mistakes of users: one message with its location and a remedy, exit code 2, no traceback."""

import os
import re
import stat
import sys
import tempfile

import pytest
from typer.testing import CliRunner

from mcframe.cli import train
from mcframe.cli import user_errors as failure
from mcframe.cli.app import app
from mcframe.cli.user_errors import report_user_errors
from mcframe.errors import UserError

GOOD = "include '{smoke}'\n"

# name: (lines of the gin file after the include, part of the message, its line or None)
MISTAKES = {
    "unknown plug-in": ("run.lensnet = @lensnet.transfomer", "did you mean @lensnet.transformer?", 2),
    "unknown binding": ("gpt.dept = 3", "did you mean depth", 2),
    "unknown group": ("contxt.window = 128", "contxt", 2),
    "renamed parameter": ("gpt.placement = 'end'", "positions.gaussian_rope.placement", 2),
    "wrong type": ("gpt.depth = 'two'", "gpt.depth", 2),
    "not one of the choices": ("deepspeed.precision = 'fp8'", "deepspeed.precision", 2),
    "window and block": ("# a comment\ncontext.window = 130", "Set context.window to a multiple of 4", 3),
    "window and tail": ("context.tail = 256", "tail", 2),
    "window and batch": ("run.batch_tokens = 1000", "Set run.batch_tokens = 1024", 2),
    "less than a step": ("run.total_tokens = 100", "run.total_tokens: expected at least one step", 2),
    "tokenizer and model": ("gpt.vocab_size = 100", "set gpt.vocab_size = 257", 2),
    "no such include": ("include 'megacontxt.gin'", "did you mean megacontext.gin?", 2),
    "not gin": ("gpt.depth = ", "", 2),
    "Muon and clipping": (
        "run.optimizer = @optimizer.muon\noptimizer.gradient_clipping = 1.0",
        "Remove optimizer.gradient_clipping",
        3,
    ),
    "levels that never occur": ("context.levels = 3", "Set context.levels = 2", 2),
    "length that is too short": ("context.length_end = 0.01", "the shortest has", 2),
    "unknown key of DeepSpeed": (
        "deepspeed.settings = {'zero_optimisation': {}}", "did you mean zero_optimization?", 2,
    ),
    "wrong value of a DeepSpeed key": (
        "deepspeed.settings = {'wall_clock_breakdown': 'yes'}", "expected a valid boolean, got 'yes'", 2,
    ),
    "weights that are all 0": (
        "loss.next_token.weight = 0.0\nrun.losses = [@loss.next_token]", "a loss with a weight above 0", 3,
    ),
    "bf16 without master weights": ("deepspeed.precision = 'bf16'", "Set deepspeed.zero_stage = 1", 2),
    "offload": ("deepspeed.offload_optimizer = True", "expected deepspeed.zero_stage of 1 or higher", 2),
    "heads": ("gpt.heads = 5", "gpt.width = 64", None),
    "untrained tokenizer": ("run.tokenizer = @tokenizer.bpe", "mcframe tokenizer --gin", None),
}  # fmt: skip


def plain(text):
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """Undo after each test what the command sets before it imports DeepSpeed."""
    for name, value in {
        "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0",
        "DS_ACCELERATOR": "cpu", "PATH": "", "COLUMNS": "400", "MCFRAME_CACHE": str(tmp_path / "cache"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_gin_file(mistake, smoke, tmp_path, capsys):
    lines, message, line = MISTAKES[mistake]
    file = tmp_path / "mine.gin"
    file.write_text(GOOD.format(smoke=smoke) + lines + "\n")
    code = train.main(["--gin", str(file), "--run-dir", str(tmp_path / "run")])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.count("╭─") == 1
    assert message.lower() in plain(err).lower()
    assert "→" in err
    assert line is None or f"{file}:{line} " in plain(err)
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_required_value_that_is_missing(tmp_path, capsys, root):
    file = tmp_path / "mine.gin"
    file.write_text("include 'megacontext.gin'\ninclude 'data/stdlib_bytes.gin'\ncontext.window = 128\n")
    assert train.main(["--gin", str(file)]) == 2
    err = plain(capsys.readouterr().err)
    assert "run.batch_tokens" in err


def test_the_location_is_that_of_the_last_binding(smoke, tmp_path, capsys):
    first, second = tmp_path / "first.gin", tmp_path / "second.gin"
    first.write_text(f"include '{smoke}'\ncontext.window = 130\n")
    second.write_text("\n\ncontext.window = 131\n")
    assert train.main(["--gin", str(first), "--gin", str(second)]) == 2
    assert f"{second}:3 " in plain(capsys.readouterr().err)
    assert train.main(["--gin", str(first), "--set", "context.window = 132", "--set", "context.window = 133"]) == 2
    assert "--set 'context.window = 133'" in plain(capsys.readouterr().err)


def test_traceback_lets_the_error_through(smoke, capsys):
    with pytest.raises(UserError, match=r"gpt\.depth"):
        train.main(["--gin", str(smoke), "--set", "gpt.depth = 'two'", "--traceback"])
    assert capsys.readouterr().err == ""


# ---- several ranks -------------------------------------------------------------------------------
@pytest.fixture
def rank(monkeypatch, tmp_path):
    """End the command of a rank with an error. Returns whether its message was printed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(failure, "_OTHERS_REPORT_S", 0.05)

    def end(number, capsys, message="no luck", kind=UserError):
        monkeypatch.setenv("RANK", str(number))
        monkeypatch.setenv("WORLD_SIZE", "2")

        def fail():
            raise kind(message)

        assert report_user_errors(fail, traceback=False) == 2
        return message in capsys.readouterr().err

    return end


def notes_of(folder):
    return folder / f"mcframe-errors-{os.getuid()}"


def test_of_several_ranks_that_fail_the_first_one_reports(rank, capsys, tmp_path):
    assert rank(1, capsys)
    assert not rank(0, capsys)
    assert not rank(0, capsys, "a consequence")
    assert stat.S_IMODE(notes_of(tmp_path).stat().st_mode) == 0o700
    (note,) = notes_of(tmp_path).iterdir()
    os.utime(note, (0, 0))
    assert rank(1, capsys)  # an old note of another launcher with this number does not count


LOST = (
    "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:2171",
    "Timed out waiting 1800000ms for recv operation to complete",
)


@pytest.mark.parametrize("text", LOST)
def test_the_loss_of_another_rank_is_reported_only_if_that_rank_reports_nothing(rank, capsys, text):
    assert rank(0, capsys, text, RuntimeError)  # the other rank was killed
    assert not rank(0, capsys, text, RuntimeError)


def test_a_message_is_printed_if_no_note_can_be_written(rank, capsys, tmp_path):
    notes_of(tmp_path).touch()
    assert rank(0, capsys)
    assert rank(1, capsys)


def test_notes_are_not_written_to_a_folder_of_another_user(rank, capsys, tmp_path):
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


def test_a_file_that_cannot_be_written_is_an_error_without_the_option_of_another_command(capsys, tmp_path):
    (tmp_path / "file").touch()
    assert report_user_errors(lambda: (tmp_path / "file" / "below").touch() or 0, traceback=False) == 2
    message = plain(capsys.readouterr().err)
    assert f"{tmp_path / 'file' / 'below'}: Not a directory" in message
    assert "--run-dir" not in message


# ---- through the script itself -------------------------------------------------------------------
@pytest.mark.launcher
def test_the_script_prints_the_error_alone(launches, tmp_path):
    options = ["--gin", str(tmp_path / "smoke.gin"), "--run-dir", str(tmp_path / "run")]
    result = launches.execute([sys.executable, launches.script, *options])
    assert result.code == 2
    assert result.output.startswith("╭─ mcframe")
    assert result.errors == 1
    assert "missing gin file" in result.text
    assert not (tmp_path / "run").exists()


@pytest.mark.launcher
def test_an_empty_corpus(launches, tmp_path):
    """The text is read after the engine has started."""
    result = launches.run("run.text = @text.local_files", f"text.local_files.paths = {str(tmp_path)!r}")
    assert result.code == 2, result.output[-6000:]
    assert ".parquet" in result.text
    assert f"in {tmp_path}" in result.text
    assert "text.local_files.paths" in result.text
    assert "Traceback" not in result.output


@pytest.mark.parametrize("forgotten", [["gin/smoke.gin"], ["--set", "run.seed = 1", "gin/smoke.gin"], []])
def test_a_run_without_a_gin_file_is_refused_with_an_example(forgotten):
    result = CliRunner().invoke(app, ["run", *forgotten])
    assert result.exit_code == 2
    assert f"mcframe run --gin {forgotten[-1] if forgotten else 'gin/quickstart.gin'}" in result.output


def test_ctrl_c_ends_a_command_with_one_word(capsys):
    def pressed():
        raise KeyboardInterrupt

    assert report_user_errors(pressed, traceback=False) == 130
    assert capsys.readouterr().err == "interrupted\n"
    with pytest.raises(KeyboardInterrupt):
        report_user_errors(pressed, traceback=True)
