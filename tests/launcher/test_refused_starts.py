"""A start that is refused changes no byte of the run directory, and a run directory has one owner."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil

import pytest

from mcframe.training.run_lock import LOCK, RunLock
from tests.support.forked_ranks import CONTEXT, uncounted
from tests.support.launches import SMOKE

pytestmark = pytest.mark.launcher

PLUGINS = '''
import random

import numpy as np
import torch

from mcframe.hookspecs import Allocator, Callback, Loss, LossTerm, MetricLogger, Schedule, hookimpl


class Late(Schedule):
    """Negative after the first half."""

    def factor(self, step, total_steps):
        return 1.0 if step < total_steps / 2 else -1.0


class Greedy(Allocator):
    """Keeps every entry at any budget."""

    def __init__(self, tree):
        self.tree = tree

    def allocate(self, scores, context, budget, seeds):
        return context.focus


class Raising(Loss):
    """Raises in training, not in eval mode."""

    name = "raising"

    def __init__(self, shape, *, weight: float = 0.1):
        super().__init__()
        self.weight = weight

    def forward(self, view):
        if self.training:
            raise ValueError("the first batch is bad")
        return LossTerm(view.uncompressed.nll.mean(dim=1))


class Writing(MetricLogger):
    """Writes files when it is opened."""

    def __init__(self, run):
        (run.directory / "of_a_logger.txt").write_text("opened")
        (run.directory / "of_a_logger").mkdir()
        (run.directory / "of_a_logger" / "too.txt").write_text("opened")

    def write(self, tokens, step, metrics):
        """Nothing."""


class Random(Callback):
    """Draws from every global random state when it is built and after every step."""

    name = "random"

    def __init__(self):
        self.draws = [self.draw()]

    def draw(self):
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    def on_start(self, run):
        self.draw()
        self.directory = run.directory

    def after_step(self, view):
        self.draws.append(self.draw())
        if view.step == 3:
            (self.directory.parent / f"{self.directory.name}-3.txt").write_text(repr(self.draws))

    def state_dict(self):
        return {"draws": self.draws}

    def load_state_dict(self, state):
        self.draws = state["draws"]


def closed_callback() -> Callback:
    raise ConnectionError("no route to host")


def closed_loss(shape) -> Loss:
    raise ConnectionError("no route to host")


def closed_logger(run) -> MetricLogger:
    raise ConnectionError("no route to host")


def closed_allocator(tree) -> Allocator:
    raise ConnectionError("no route to host")


@hookimpl
def register_plugins(register):
    register("late", Late)
    register("keeps_all", Greedy)
    register("raising", Raising)
    register("writing", Writing)
    register("random", Random)
    for build in (closed_callback, closed_loss, closed_logger, closed_allocator):
        register(build.__name__, build)
'''

BASE = (
    "run.batch_tokens = 512", "run.total_tokens = 1024", "logging.every = 512", "checkpoint.every = 512",
    "validation.every = 0", "validation.windows = 2", "run.callbacks = [@callback.random]", "checkpoint.keep = 5",
)  # fmt: skip
MORE = "run.total_tokens = 2048"
REFUSED = {
    "a complete run with other bindings": ("optimizer.lr = 0.001",),
    "a changed model": (MORE, "gpt.depth = 3"),
    "another part": (MORE, "run.lensnet = @lensnet.mean"),
    "another seed": (MORE, "run.seed = 1"),
    "another batch": (MORE, "run.batch_tokens = 1024"),
    "a misspelt binding": (MORE, "optimizer.rl = 1"),
    "a wrong type": (MORE, "optimizer.lr = 'fast'"),
    "another text": (MORE, "run.text = @text.local_files", "text.local_files.paths = 'FOLDER/corpus'"),
    "a missing text": (MORE, "run.text = @text.local_files", "text.local_files.paths = 'FOLDER/missing'"),
    "a batch that cannot be divided": (MORE, "run.micro_batch = -1"),
    "a negative rate near the end": (MORE, "run.schedule = @schedule.late"),
    "an allocator over its budget": (MORE, "run.allocator = @allocator.keeps_all"),
    "an allocator that cannot be built": (MORE, "run.allocator = @allocator.closed_allocator"),
    "a callback that cannot be built": (MORE, "run.callbacks = [@callback.closed_callback]"),
    "a logger that cannot be opened": (MORE, "run.loggers = [@logger.writing, @logger.closed_logger]"),
    "a loss that cannot be built": (MORE, "run.extra_losses = [@loss.closed_loss]"),
    "a loss that fails in the first batch": (MORE, "run.extra_losses = [@loss.raising]"),
    "an unknown mode of wandb": (MORE, "logging.wandb = 'sometimes'"),
    "two evaluations of one name": (
        MORE, "run.evaluations = [@evaluation.gist_quality, @evaluation.gist_quality]",
    ),
    "a missing plug-in": (MORE, "--plugin", "FOLDER/missing.py"),
    "a missing checkpoint": (MORE, "--resume", "FOLDER/missing"),
    "an owner": (MORE, "HELD"),
}  # fmt: skip
NEW = (
    "a missing text", "a negative rate near the end", "an allocator over its budget", "a logger that cannot be opened",
    "a loss that fails in the first batch", "a callback that cannot be built", "an owner",
)  # fmt: skip


def tree(folder):
    """Return the content of every file of a folder by its path, None for a folder."""
    return {str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")}


def attempt(folder, run_dir, bindings):
    """Train in this process. Return the exit code, the output, and the paths whose content has changed."""
    from mcframe.cli.train import main

    options = ["--gin", str(SMOKE), "--run-dir", str(run_dir), "--plugin", str(folder / "broken.py")]
    values = [each.replace("FOLDER", str(folder)) for each in bindings if each != "HELD"]
    for at, value in enumerate(values):
        option = value if value.startswith("--") else ""
        after_option = at and values[at - 1].startswith("--")
        options += [value] if option or after_option else ["--set", value]
    before, output = tree(folder), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            code = main(options)
        except BaseException as error:  # noqa: BLE001 - the traceback of a training is a result
            code = repr(error)
    after = tree(folder)
    return code, output.getvalue(), sorted(path for path in before | after if before.get(path) != after.get(path))


def attempts(folder, environment):
    """Train a run, then try every start that is refused in its directory and in a new one. Write what happened."""
    from mcframe.cli import train
    from mcframe.training.flops import StepFlops

    StepFlops._run = uncounted
    os.environ.clear()
    os.environ.update(environment)
    train.dist.destroy_process_group = lambda: None  # the group serves every start
    run, found = folder / "run", {}
    found["base"] = attempt(folder, run, BASE)
    saved = shutil.copytree(run, folder / "saved")
    for kind, bindings in REFUSED.items():
        for directory in [run] + [folder / "new" / "run"] * (kind in NEW):
            holder = RunLock(directory)
            if "HELD" in bindings:
                holder.take()
            found[f"{kind} {directory.parent.name == 'new'}"] = attempt(folder, directory, (*BASE, *bindings))
            holder.release()
            if directory == run:
                shutil.rmtree(run)
                shutil.copytree(saved, run)
    (folder / "found.json").write_text(json.dumps(found))
    attempt(folder, folder / "again", (*BASE, MORE))
    (run / "checkpoints" / ".writing-tokens-000000000000009").mkdir()
    (run / ".0a1b2c3d.partial").touch()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(line for line in lines if "train/checkpoint_ms" not in line))
    found["resumed"] = attempt(folder, run, (*BASE, MORE))
    found["leftovers"] = [path for path in tree(run) if ".writing-" in path or path.endswith((".partial", LOCK))]
    (folder / "found.json").write_text(json.dumps(found))
    os._exit(0)


@pytest.fixture(scope="module")
def found(launches, tmp_path_factory):
    folder = tmp_path_factory.mktemp("refused")
    (folder / "broken.py").write_text(PLUGINS)
    (folder / "corpus").mkdir()
    words = random.Random(3)
    for number in range(20):
        (folder / "corpus" / f"{number}.txt").write_text(" ".join(words.choices(("tree", "gist", "lens"), k=200)))
    port = launches.port()
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
    process = CONTEXT.Process(
        target=attempts, args=(folder, {**launches.environment, **group, "RANK": "0", "LOCAL_RANK": "0"})
    )
    process.start()
    process.join()
    return {**json.loads((folder / "found.json").read_text()), "folder": folder}


def test_the_runs_that_are_not_refused_end_well(found):
    assert found["base"][0] == 0, found["base"][1]
    assert found["resumed"][0] == 0, found["resumed"][1]
    assert found["leftovers"] == []


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refused_start_changes_nothing(found, kind):
    code, output, changed = found[f"{kind} False"]
    assert changed == []
    assert code == 2 or "first batch" in kind, output
    assert "is complete" not in output
    if kind == "a complete run with other bindings":
        assert "it has optimizer.lr = " in " ".join(output.split())


@pytest.mark.parametrize("kind", NEW)
def test_a_directory_that_a_refused_start_creates_is_removed(found, kind):
    code, output, changed = found[f"{kind} True"]
    # The holder of the lock itself creates the directory.
    assert changed == []
    assert code == 2 or "first batch" in kind, output


def test_the_time_of_a_checkpoint_whose_run_was_killed_comes_back(found):
    """The run was killed between the checkpoint at 1,024 tokens and the row with its time."""
    lines = [json.loads(line) for line in (found["folder"] / "run" / "metrics.jsonl").read_text().splitlines()]
    times = {line["tokens"]: line["train/checkpoint_ms"] for line in lines if "train/checkpoint_ms" in line}
    assert list(times) == [1024, 1536, 2048]
    assert 0 < times[1024] < 600_000


def test_the_owner_is_named(found):
    output = " ".join(found["an owner False"][1].split())
    for expected in ("belongs to a run that has not ended", f"on {os.uname().nodename}", "since 20", "--run-dir"):
        assert expected in output


def test_two_ranks_are_refused_in_one_message(launches, tmp_path):
    with RunLock(tmp_path / "run") as owner:
        owner.take()
        before = tree(tmp_path)
        result = launches.run(*BASE[:-2], ranks=2, run_dir=tmp_path / "run")
        assert tree(tmp_path) == before
    assert result.code == 2, result.output
    assert result.errors == 1
    assert f"process {os.getpid()} on" in result.text


def test_plugins_that_draw_from_global_random_states_repeat(found):
    """Two runs of one seed draw alike, resumed or not; a new seed draws otherwise."""
    draws = [(found["folder"] / f"{name}-3.txt").read_text() for name in ("run", "again")]
    assert draws[0] == draws[1]
    assert len(eval(draws[0])) == 5
