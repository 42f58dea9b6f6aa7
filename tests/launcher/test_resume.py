"""A run that is interrupted and resumed equals an uninterrupted one in every metric: real runs across an epoch."""

import json
import os
import random
import shutil
import signal
import sys
from dataclasses import replace

import pytest
import torch.distributed as dist

from mcframe.errors import UserError
from mcframe.training.checkpoint_folder import COMPLETE, find
from mcframe.training.checkpoint_writer import CheckpointWriter
from mcframe.training.run_directory import plan
from tests.support.launches import SMOKE
from tests.support.layouts import build_engine, in_ranks

pytestmark = pytest.mark.launcher

STEP = 512
STEPS = 12
# Logging, validation and checkpoints fall on different steps, so that interruptions can lie between any two.
CADENCE = (
    f"run.batch_tokens = {STEP}",
    f"run.total_tokens = {STEPS * STEP}",
    f"logging.every = {2 * STEP}",
    f"validation.every = {6 * STEP}",
    f"checkpoint.every = {5 * STEP}",
    f"sampling.every = {4 * STEP}",
    "sampling.length = 4",
    "run.hooks = {'stopper': {}}",
    "run.text = @text.local_files",
    "data.validation_fraction = 0.2",
)

# Sends a signal to its own process: STOP is SIGNAL:RANK:STEP.
STOPPER = """
    import os
    import signal

    from mcframe.hookspecs import hookimpl
    from mcframe.training.flops import StepFlops

    def uncounted(*_):
        raise NotImplementedError  # also in the ranks of a command: a count takes two seconds

    StepFlops._run = uncounted

    @hookimpl
    def step_finished(run):
        name, rank, step = os.environ.get("STOP", "SIGINT:0:0").split(":")
        if (run.rank, run.step) == (int(rank), int(step)):
            os.kill(os.getpid(), getattr(signal, name))
"""


@pytest.fixture(scope="module")
def launches(launches, tmp_path_factory, new_site):
    """Launches with the package that stops a run."""
    site = new_site(tmp_path_factory.mktemp("stopper"))
    site.install("stopper", STOPPER)
    return replace(launches, environment={**launches.environment, **site.environment})


@pytest.fixture(scope="module")
def settings(launches):
    """Settings of a corpus whose epoch is a few steps: 12 documents of some 500 bytes, sequences of 128."""
    folder = launches.folder / "short corpus"
    folder.mkdir()
    words = random.Random(7)
    for number in range(12):
        text = " ".join(words.choice(("focus", "gist", "lens", "tree", "window", "budget")) for _ in range(90))
        (folder / f"{number:02}.txt").write_text(text)
    return (*CADENCE, f"text.local_files.paths = {str(folder)!r}")


def stopper(stop):
    return {"STOP": stop}


@pytest.fixture(scope="module")
def one(launches, settings):
    """One rank, uninterrupted."""
    return launches.run(*settings, run_dir=launches.folder / "one").succeeded()


@pytest.fixture(scope="module")
def interrupted(launches, settings):
    """One rank, interrupted after step 3, inside a logging interval."""
    return launches.run(*settings, run_dir=launches.folder / "interrupted", environment=stopper("SIGINT:0:3"))


@pytest.fixture
def copy(interrupted, tmp_path):
    """A copy of the folder of the interrupted run."""
    return shutil.copytree(interrupted.run_dir, tmp_path / "run")


def assert_interrupted(result, at=None, code=130):
    assert result.code == code, result.output[-6000:]
    assert result.summary["status"] == "interrupted"
    assert at is None or result.summary["tokens"] == at * STEP
    assert result.checkpoints[-1] == result.summary["tokens"]
    assert "the same gin files with --run-dir" in result.text


def assert_equal(result, reference):
    assert result.summary["status"] == "finished"
    assert f"mcframe review {result.run_dir}" in result.text
    assert set(result.metrics) == set(reference.metrics)
    for tokens, expected in reference.metrics.items():
        assert result.metrics[tokens] == expected, tokens
    # First and last values of the closing summary span all sessions.
    for end in ("first", "last"):
        figures, expected = result.summary[end], reference.summary[end]
        assert figures.keys() == expected.keys()
        assert result.compared(figures) == result.compared(expected)
    assert not (result.run_dir / "metrics.superseded.jsonl").exists()
    assert recorded(result) == recorded(reference)
    assert len(recorded(result)) > 6


def recorded(result):
    """Return the data of its figures without times."""
    lines = [json.loads(line) for line in (result.run_dir / "pictures.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "time"} for line in lines]


def test_the_run_crosses_epochs_and_keeps_the_newest_checkpoints(one):
    assert sorted(one.metrics) == [tokens * STEP for tokens in (0, 2, 4, 6, 8, 10, 12)]
    assert {"val/bpb", "mc/focus_iterations"} <= set(one.metrics[6 * STEP])
    assert one.checkpoints == [10 * STEP, 12 * STEP]
    assert list(one.run_dir.glob("checkpoints/.writing-*")) == []


def test_one_rank_interrupted_twice_and_then_killed_equals_uninterrupted(launches, settings, one, interrupted, copy):
    assert_interrupted(interrupted, at=3)
    assert sorted(interrupted.metrics) == [0, 2 * STEP]
    again = launches.run(*settings, run_dir=copy, environment=stopper("SIGTERM:0:7"))
    assert_interrupted(again, at=7, code=143)
    assert f"({3 * STEP:,} tokens)" in again.text
    assert not (copy / "metrics.superseded.jsonl").exists()

    killed = launches.run(*settings, run_dir=copy, environment=stopper("SIGKILL:0:9"))
    assert killed.code == -signal.SIGKILL
    assert killed.checkpoints == [5 * STEP, 7 * STEP]
    assert max(killed.metrics) == 8 * STEP
    # Files after a crash while saving, or while writing a line.
    complete, torn = (copy / f"checkpoints/tokens-{number * STEP:015d}" for number in (7, 8))
    shutil.copytree(complete, torn)
    (torn / COMPLETE).unlink()
    (copy / "checkpoints" / f".writing-tokens-{10 * STEP:015d}").mkdir()
    with (copy / "metrics.jsonl").open("a") as file:
        file.write(f'{{"tokens": {8 * STEP}, "st')

    result = launches.run(*settings, run_dir=copy).succeeded()
    assert f"{complete} ({7 * STEP:,} tokens)" in result.text
    superseded = (copy / "metrics.superseded.jsonl").read_text().splitlines()
    assert [line.endswith("}") for line in superseded] == [True, False]
    assert all(line.startswith(f'{{"tokens": {8 * STEP}, ') for line in superseded)
    (copy / "metrics.superseded.jsonl").unlink()
    assert_equal(result, one)
    assert list(copy.glob("checkpoints/.writing-*")) == []


def press_ctrl_c(line, process):
    """Interrupt the command, the launcher and every rank at once, as a terminal does, at the first logged step."""
    if "ETA" in line and "loss" in line:
        os.killpg(process.pid, signal.SIGINT)


def test_two_ranks_interrupted_equal_uninterrupted(launches, settings, tmp_path):
    settings = (*settings, f"run.total_tokens = {8 * STEP}", "deepspeed.zero_stage = 2")
    reference = launches.run(*settings, ranks=2).succeeded()
    run_dir = tmp_path / "run"
    # Rank 1 alone receives the signal; rank 0 writes the checkpoint.
    result = launches.run(*settings, ranks=2, run_dir=run_dir, environment=stopper("SIGINT:1:3"))
    assert_interrupted(result, at=3)
    assert_equal(launches.run(*settings, ranks=2, run_dir=run_dir).succeeded(), reference)


def test_a_run_resumes_with_other_ranks_and_another_stage(launches, settings, one, copy):
    """Interrupted within a logging interval, whose first step is counted as well."""
    result = launches.run(*settings, "deepspeed.zero_stage = 2", ranks=2, run_dir=copy).succeeded()
    assert "deepspeed.zero_stage 0 2 applied" in " ".join(result.output.replace("│", " ").split())
    assert set(result.metrics) == set(one.metrics)
    for tokens, expected in one.metrics.items():
        found = result.metrics[tokens]
        for name in ("train/loss", "train/loss_lod0", "mc/tail_delta", "val/loss", "train/lr"):
            assert found.get(name) == pytest.approx(expected.get(name), abs=1e-3), (tokens, name)


def test_the_command_interrupted_at_ctrl_c_equals_uninterrupted(launches, settings, one, tmp_path):
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "mcframe", "run", "--gin", str(SMOKE), "--run-dir", str(run_dir)]
    for setting in settings:
        command += ["--set", setting]
    result = launches.execute(command, run_dir=run_dir, watch=press_ctrl_c)
    assert_interrupted(result)
    assert 2 * STEP <= result.summary["tokens"] < STEPS * STEP
    assert_equal(launches.run(*settings, run_dir=run_dir).succeeded(), one)


@pytest.mark.matrix
@pytest.mark.parametrize("buffer", [None, 0, 5])
def test_streamed_text_resumed_twice_equals_uninterrupted(launches, settings, tmp_path, buffer):
    """Local files, a data set, and one whose shuffle buffer has no position; each of 64 lanes has passed a window."""
    rows = (json.dumps({"text": f"{row} " + "gist lens " * (8 + row % 5)}) for row in range(300))
    file = tmp_path / "set" / "rows.jsonl"
    file.parent.mkdir()
    file.write_text("\n".join(rows))
    more = (*settings, f"text.local_files.paths = {str(file.parent)!r}", "text.local_files.streaming = True")
    if buffer is not None:
        source = "run.text = @text.huggingface", f"text.huggingface.name = {str(file.parent)!r}"
        more = (*settings, *source, f"text.huggingface.shuffle_buffer = {buffer}")
    more = (*more, f"run.total_tokens = {40 * STEP}", f"sampling.every = {20 * STEP}")
    reference = launches.run(*more).succeeded()
    for stop in ("SIGINT:0:20", "SIGINT:0:30", "SIGINT:0:0"):
        result = launches.run(*more, run_dir=tmp_path / "run", environment=stopper(stop))
        again = buffer == 5 and stop != "SIGINT:0:20"
        assert result.text.count("has no position to resume from") == 2 * again  # and once more at the end
    assert_equal(result, reference)


@pytest.mark.matrix
def test_ranks_save_although_the_launcher_ends_at_ctrl_c(launches, settings, one, tmp_path):
    run_dir = tmp_path / "run"
    result = launches.run(*settings, launcher=True, run_dir=run_dir, watch=press_ctrl_c)
    assert result.code == -signal.SIGINT  # the launcher does not wait for the ranks
    assert result.summary["status"] == "interrupted"
    assert result.checkpoints[-1] == result.summary["tokens"]
    assert_equal(launches.run(*settings, run_dir=run_dir).succeeded(), one)


def test_a_finished_run_is_not_trained_again(launches, settings, one):
    before = (one.run_dir / "metrics.jsonl").read_bytes()
    result = launches.run(*settings, run_dir=one.run_dir).succeeded()
    assert f"{one.run_dir} is complete: {STEPS * STEP:,} tokens" in result.text
    assert (one.run_dir / "metrics.jsonl").read_bytes() == before


def load_into_others(run_dir):
    """Save a checkpoint at ZeRO 3, and load it into its own engine and a deeper one. Return the messages of errors."""
    from mcframe.training import checkpoints

    writer = CheckpointWriter(dist.distributed_c10d._get_default_store(), 0, 1)
    engine, _ = build_engine(3)
    checkpoints.save(writer, engine, run_dir, {"tokens": 3}, {"step": 1}, {}, 1)
    path, found = writer.wait().path, []
    for each in (engine, build_engine(3, ("gpt.depth = 2",))[0]):
        try:
            checkpoints.load(each, find(path))
        except UserError as error:
            found.append(error.message)
        else:
            found.append("")
    return found


def test_a_checkpoint_of_another_model_is_reported_in_one_message(tmp_path):
    ((same, deeper),) = in_ranks(load_into_others, 1, tmp_path)
    assert same == ""
    assert "cannot be loaded: " in deeper


# ---- which folder, which checkpoint --------------------------------------------------------------
def test_resume_auto_continues_in_the_folder(interrupted):
    found = plan("smoke", interrupted.run_dir, "auto")
    assert found.directory == interrupted.run_dir
    assert found.checkpoint.tokens == 3 * STEP


def test_resume_never_takes_a_new_folder_and_overwrites_none(interrupted, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="already holds a run"):
        plan("smoke", interrupted.run_dir, "never")
    monkeypatch.chdir(tmp_path)
    assert str(plan("smoke", None, "never").directory) == "runs/smoke"
    for expected in ("runs/smoke-2", "runs/smoke-3"):
        taken = plan("smoke", None, "never").directory
        taken.mkdir(parents=True)
        (taken / "metrics.jsonl").touch()
        found = plan("smoke", None, "never")
        assert (str(found.directory), found.checkpoint) == (expected, None)


def test_resume_from_a_folder_or_a_checkpoint(one, tmp_path):
    for source in (one.run_dir, one.run_dir / f"checkpoints/tokens-{12 * STEP:015d}"):
        found = plan("smoke", tmp_path, str(source))
        assert (found.directory, found.checkpoint.tokens) == (tmp_path, 12 * STEP)
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        plan("smoke", tmp_path, str(tmp_path / "nothing"))
