"""Interrupted and resumed equals uninterrupted, metric for metric: real runs across an epoch."""

import json
import os
import random
import shutil
import signal
import sys
import textwrap

import pytest

from mcframe.errors import UserError
from mcframe.training.checkpoints import COMPLETE
from mcframe.training.run_directory import plan

pytestmark = pytest.mark.launcher

STEP = 1024
STEPS = 12
# Logging, validation and checkpoints fall on different steps, so that interruptions can lie between any two.
CADENCE = (
    f"run.total_tokens = {STEPS * STEP}",
    f"logging.every = {2 * STEP}",
    f"validation.every = {6 * STEP}",
    f"checkpoint.every = {5 * STEP}",
    f"sampling.every = {4 * STEP}",
    "sampling.length = 4",
    "run.text = @text.local_files",
    "data.validation_fraction = 0.2",
)

# Ends or interrupts its own process: STOP is SIGNAL:RANK:STEP.
STOPPER = """
    import os
    import signal

    from mcframe.hookspecs import hookimpl

    @hookimpl
    def step_finished(run):
        name, rank, step = os.environ.get("STOP", "SIGINT:0:0").split(":")
        if (run.rank, run.step) == (int(rank), int(step)):
            os.kill(os.getpid(), getattr(signal, name))
"""


@pytest.fixture(scope="module")
def settings(launches):
    """On a corpus whose epoch is a few steps: 12 documents of some 500 bytes, sequences of 128."""
    folder = launches.folder / "short corpus"
    folder.mkdir()
    words = random.Random(7)
    for number in range(12):
        text = " ".join(words.choice(("focus", "gist", "lens", "tree", "window", "budget")) for _ in range(90))
        (folder / f"{number:02}.txt").write_text(text)
    return (*CADENCE, f"text.local_files.paths = {str(folder)!r}")


@pytest.fixture(scope="module")
def stopper(tmp_path_factory, new_site):
    site = new_site(tmp_path_factory.mktemp("stopper"))
    site.install("stopper", STOPPER)
    return lambda stop: {**site.environment, "STOP": stop}


@pytest.fixture(scope="module")
def one(launches, settings):
    """One rank, uninterrupted."""
    return launches.run(*settings, run_dir=launches.folder / "one").succeeded()


@pytest.fixture(scope="module")
def interrupted(launches, settings, stopper):
    """One rank, interrupted behind step 3, inside a logging interval."""
    return launches.run(*settings, run_dir=launches.folder / "interrupted", environment=stopper("SIGINT:0:3"))


@pytest.fixture
def copy(interrupted, tmp_path):
    """Its folder, to do with what one likes."""
    return shutil.copytree(interrupted.run_dir, tmp_path / "run")


def assert_interrupted(result, at=None):
    assert result.code == 130, result.output[-6000:]
    assert result.summary["status"] == "interrupted"
    assert at is None or result.summary["tokens"] == at * STEP
    assert result.checkpoints[-1] == result.summary["tokens"]
    assert "To resume: the same gin files with --run-dir" in result.words


def assert_equal(result, reference):
    assert result.summary["status"] == "finished"
    assert f"To read it: mcframe review {result.run_dir}" in result.words
    assert set(result.metrics) == set(reference.metrics)
    for tokens, expected in reference.metrics.items():
        assert result.metrics[tokens] == expected, tokens
    # First and last values of the closing summary span all the sessions.
    for end in ("first", "last"):
        figures, wanted = result.summary[end], reference.summary[end]
        assert figures.keys() == wanted.keys()
        assert result.compared(figures) == result.compared(wanted)
    assert not (result.run_dir / "metrics.superseded.jsonl").exists()
    assert recorded(result) == recorded(reference)
    assert len(recorded(result)) > 6


def recorded(result):
    """What its pictures are drawn from, without the time of day."""
    lines = [json.loads(line) for line in (result.run_dir / "pictures.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "time"} for line in lines]


def test_the_run_crosses_epochs_and_keeps_the_newest_checkpoints(one):
    assert sorted(one.metrics) == [tokens * STEP for tokens in (0, 2, 4, 6, 8, 10, 12)]
    assert {"val/bpb", "mc/focus_iterations"} <= set(one.metrics[6 * STEP])
    assert one.checkpoints == [10 * STEP, 12 * STEP]
    assert list(one.run_dir.glob("checkpoints/.writing-*")) == []


def test_one_rank_interrupted_twice_and_then_killed_equals_uninterrupted(
    launches, settings, stopper, one, interrupted, copy
):
    assert_interrupted(interrupted, at=3)
    assert sorted(interrupted.metrics) == [0, 2 * STEP]
    again = launches.run(*settings, run_dir=copy, environment=stopper("SIGTERM:0:7"))
    assert_interrupted(again, at=7)
    assert f"({3 * STEP:,} tokens)" in again.words
    assert not (copy / "metrics.superseded.jsonl").exists()

    killed = launches.run(*settings, run_dir=copy, environment=stopper("SIGKILL:0:9"))
    assert killed.code == -signal.SIGKILL
    assert killed.checkpoints == [5 * STEP, 7 * STEP]
    assert max(killed.metrics) == 8 * STEP
    # What a crash while saving, or while writing a line, leaves behind.
    complete, torn = (copy / f"checkpoints/tokens-{number * STEP:015d}" for number in (7, 8))
    shutil.copytree(complete, torn)
    (torn / COMPLETE).unlink()
    (copy / "checkpoints" / f".writing-tokens-{10 * STEP:015d}").mkdir()
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"tokens": 8192, "st')

    result = launches.run(*settings, run_dir=copy).succeeded()
    assert f"{complete} ({7 * STEP:,} tokens)" in result.words
    superseded = (copy / "metrics.superseded.jsonl").read_text().splitlines()
    assert [line.endswith("}") for line in superseded] == [True, False]
    assert all(line.startswith(f'{{"tokens": {8 * STEP}, ') for line in superseded)
    (copy / "metrics.superseded.jsonl").unlink()
    assert_equal(result, one)
    assert list(copy.glob("checkpoints/.writing-*")) == []


def test_two_ranks_interrupted_twice_equal_uninterrupted(launches, settings, stopper, tmp_path):
    settings = (*settings, "deepspeed.zero_stage = 2")
    reference = launches.run(*settings, ranks=2).succeeded()
    run_dir = tmp_path / "run"

    def press_ctrl_c(line, process):
        # As a terminal does: to the launcher, its helper and every rank at once.
        if f"{2 * STEP / 1000:.3g}k/" in line:
            os.killpg(process.pid, signal.SIGINT)

    result = launches.run(*settings, ranks=2, launcher=True, run_dir=run_dir, watch=press_ctrl_c)
    assert result.code == -signal.SIGINT  # the launcher itself dies of it, and does not wait for the ranks
    assert result.summary["status"] == "interrupted"
    assert 2 * STEP <= result.summary["tokens"] < STEPS * STEP
    assert result.checkpoints[-1] == result.summary["tokens"]
    assert "To resume: the same gin files with --run-dir" in result.words
    # On one rank alone, and not the one that writes.
    result = launches.run(*settings, ranks=2, run_dir=run_dir, environment=stopper("SIGINT:1:9"))
    assert_interrupted(result, at=9)
    result = launches.run(*settings, ranks=2, run_dir=run_dir)
    assert_equal(result.succeeded(), reference)


def test_mcframe_run_ends_with_130_when_training_is_interrupted(launches, settings, tmp_path):
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "mcframe", "run", "--gin", "gin/smoke.gin", "--run-dir", str(run_dir)]
    for setting in settings:
        command += ["--set", setting]

    def press_ctrl_c(line, process):
        if f"{2 * STEP / 1000:.3g}k/" in line:
            os.killpg(process.pid, signal.SIGINT)

    assert_interrupted(launches.execute(command, run_dir=run_dir, watch=press_ctrl_c))


def test_a_finished_run_says_so(launches, settings, one):
    before = (one.run_dir / "metrics.jsonl").read_bytes()
    result = launches.run(*settings, run_dir=one.run_dir).succeeded()
    assert f"{one.run_dir} is complete: {STEPS * STEP:,} tokens" in result.words
    assert "larger run.total_tokens" in result.words
    assert (one.run_dir / "metrics.jsonl").read_bytes() == before


DAMAGED = """
    import shutil
    import sys
    from pathlib import Path

    from mcframe.errors import UserError
    from mcframe.config.run_config import load_run_config
    from mcframe.training import checkpoints
    from mcframe.training.build import build_components
    from mcframe.training.engine import Engine, prepare_environment, start_distributed
    from mcframe.training.weights import load_weights

    DAMAGE = {
        "cut": lambda file: file.write_bytes(file.read_bytes()[:1000]),
        "empty": lambda file: file.write_bytes(b""),
        "overwritten": lambda file: file.write_bytes(b"no checkpoint"),
        "missing": lambda file: file.unlink(),
    }

    def attempt(what, action):
        try:
            action()
        except UserError as error:
            print("TOLD", *what, error.message)
        except BaseException as error:
            print("RAISED", *what, repr(error))
        else:
            print("LOADED", *what)

    prepare_environment()
    start_distributed()
    for stage in (0, 1, 3):
        components = build_components(load_run_config([sys.argv[1]], [f"deepspeed.zero_stage = {stage}"]).run_config)
        engine = Engine(components.step, components.run_config, 1)
        path = checkpoints.save(engine, Path(sys.argv[2]), {"tokens": stage}, {"step": 1}, {}, 1)
        for file in sorted(path.glob("*.pt")):
            for how, damage in DAMAGE.items():
                whole = file.read_bytes()
                damage(file)
                attempt((stage, file.name, how), lambda: checkpoints.load(engine, checkpoints.read(path), {}))
                if "rank-0" != file.stem:
                    attempt((stage, file.name, how, "export"), lambda: load_weights(checkpoints.read(path)))
                file.write_bytes(whole)
        attempt((stage, "whole"), lambda: checkpoints.load(engine, checkpoints.read(path), {}))

    attempt((3, "other ranks"), lambda: checkpoints.load(
        engine, checkpoints.Checkpoint(path, {"tokens": 3, "world_size": 2, "zero_stage": 1}), {}
    ))
    deeper = load_run_config([sys.argv[1]], ["gpt.depth = 3", "deepspeed.zero_stage = 3"]).run_config
    other = Engine(build_components(deeper).step, deeper, 1)
    attempt((3, "other model"), lambda: checkpoints.load(other, checkpoints.read(path), {}))
"""


def test_a_checkpoint_that_is_damaged_or_of_another_run_is_a_clear_message(launches, smoke, tmp_path):
    script = tmp_path / "damaged.py"
    script.write_text(textwrap.dedent(DAMAGED))
    result = launches.execute([sys.executable, str(script), str(smoke), str(tmp_path)]).succeeded()
    lines = [line for line in result.output.splitlines() if line.startswith(("TOLD", "RAISED", "LOADED"))]
    assert [line for line in lines if line.endswith(" whole")] == [f"LOADED {stage} whole" for stage in (0, 1, 3)]
    *damaged, ranks, model = [line for line in lines if not line.endswith(" whole")]
    assert len(damaged) == 4 * (2 + 3 + 3) + 4 * (1 + 2 + 2)
    assert [line for line in damaged if not line.startswith("TOLD")] == []
    assert all("cannot be loaded: " in line or "cannot be read: " in line for line in damaged)
    assert ranks.startswith("TOLD")
    assert ranks.endswith("was written by 2 rank(s) at ZeRO 1; this run has 1 at ZeRO 3")
    assert model.startswith("TOLD")
    assert "cannot be loaded: " in model


# ---- which folder, which checkpoint --------------------------------------------------------------
def test_resume_auto_goes_on_in_the_folder(interrupted):
    found = plan("smoke", interrupted.run_dir, "auto")
    assert found.directory == interrupted.run_dir
    assert found.checkpoint.tokens == 3 * STEP


def test_resume_never_takes_a_new_folder_and_overwrites_none(interrupted, copy, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="already holds a run") as caught:
        plan("smoke", interrupted.run_dir, "never")
    assert "name another --run-dir" in caught.value.remedy
    monkeypatch.chdir(tmp_path)
    assert str(plan("smoke", None, "never").directory) == "runs/smoke"
    for expected in ("runs/smoke-2", "runs/smoke-3"):
        taken = plan("smoke", None, "never").directory
        taken.mkdir(parents=True)
        (taken / "metrics.jsonl").touch()
        found = plan("smoke", None, "never")
        assert (str(found.directory), found.checkpoint) == (expected, None)


def test_resume_from_a_folder_or_a_checkpoint(one, tmp_path):
    for place in (one.run_dir, one.run_dir / f"checkpoints/tokens-{12 * STEP:015d}"):
        found = plan("smoke", tmp_path, str(place))
        assert (found.directory, found.checkpoint.tokens) == (tmp_path, 12 * STEP)
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        plan("smoke", tmp_path, str(tmp_path / "nothing"))
