"""Hooks, evaluations and pictures come after the checkpoint of their step and never end a run."""

import json
import signal
import textwrap

import pytest

pytestmark = pytest.mark.launcher

STEP = 512
STEPS = 4
SETTINGS = (
    f"run.batch_tokens = {STEP}", f"run.total_tokens = {STEPS * STEP}", "validation.windows = 4",
    f"logging.every = {STEP}", f"validation.every = {2 * STEP}", f"checkpoint.every = {2 * STEP}",
    "logging.tensorboard = False",
)  # fmt: skip
HEAD = """
    import os
    import signal

    import torch.distributed as dist

    from mcframe.hookspecs import EvalResult, Evaluation, StopRun, hookimpl
"""
FAILING = '''
    from mcframe_plugins.allocator import TopKAllocator

    class Late(TopKAllocator):
        """Fails once the run has begun, on one rank."""

        begun = False

        def allocate(self, scores, context, budget, seeds):
            if Late.begun and dist.get_rank() == dist.get_world_size() - 1:
                raise OSError("no answer from the allocator")
            return super().allocate(scores, context, budget, seeds)

    class Mine(Evaluation):
        """Fails on one rank, while the others make their next call of the model."""

        name = "mine"

        def run(self, model):
            tokens = model.held_out(2).tokens
            raw = tokens.new_zeros(2, model.tree.blocks)
            model.score(tokens, raw, "full")
            if dist.get_rank() == 0:
                raise OSError("the leaderboard is down")
            model.score(tokens, raw, "full")
            return EvalResult({})

    class Good(Evaluation):
        """Comes after the one that fails."""

        name = "good"

        def run(self, model):
            return EvalResult({"eval/good/tokens": float(model.held_out(2).tokens.numel())})

    @hookimpl
    def register_plugins(register):
        register("late", Late)
        register("mine", Mine)
        register("good", Good)

    @hookimpl
    def step_finished(run):
        Late.begun = True
        if run.step == 1:
            raise OSError("the pager is down")
'''
KILLED = """
    @hookimpl
    def metrics_logged(run, metrics):
        if "val/loss" in metrics and run.tokens == int(os.environ.get("KILL", "-1")):
            os.kill(os.getpid(), signal.SIGKILL)
"""
STOPPING = """
    @hookimpl
    def step_finished(run):
        if run.rank == 1 and run.step == 1:
            raise StopRun("the queue is full")
"""


@pytest.fixture
def added(tmp_path):
    def write(source):
        file = tmp_path / "mine.py"
        file.write_text(textwrap.dedent(HEAD) + textwrap.dedent(source))
        return ("--plugin", str(file))

    return write


def lines(run_dir):
    """The rows of metrics.jsonl: tokens and names."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(row["tokens"], name) for row in rows for name in row if name not in ("tokens", "step", "time")]


@pytest.mark.parametrize("ranks", [2, pytest.param(1, marks=pytest.mark.matrix)])
def test_what_watches_never_ends_a_run_whichever_rank_it_fails_on(launches, added, ranks):
    options = added(FAILING)
    result = launches.run(
        *SETTINGS, "run.allocator = @allocator.late", "run.evaluations = [@evaluation.mine, @evaluation.good]",
        f"evaluation.every = {2 * STEP}", ranks=ranks, options=options,
    ).succeeded()  # fmt: skip
    assert result.checkpoints == [2 * STEP, 4 * STEP]
    assert "Traceback" not in result.output
    for message, name in (
        ("failed in allocate: OSError: no answer from the allocator", "the pictures of working contexts"),
        ("failed in run: OSError: the leaderboard is down", "the evaluation mine"),
        ("failed in its hook step_finished: OSError: the pager is down", "the hooks of"),
    ):
        found = [each for each in result.summary["warnings"] if message in each]
        assert len(found) == 1, result.output[-6000:]
        (warning,) = found
        assert f"plug-in '{options[1]}'" in warning
        assert f"the run continues without {name}" in warning
        assert f"{options[1]}:" in warning  # file and line
        at_the_end = result.text.rpartition("Run finished")[2]
        assert at_the_end.count(message) == 1
    # Others continue.
    assert len(result.curve("val/loss")) == 3
    assert len(result.curve("eval/good/tokens")) == 2


SAVING = ("train/checkpoint_ms", "train/checkpoint_write_ms")


def test_a_run_killed_while_it_validates_resumes_with_the_validation(launches, added):
    options = added(KILLED)
    settings = (*SETTINGS, "checkpoint.asynchronous = False")  # a kill loses a checkpoint that is still being written
    reference = launches.run(*settings, options=options).succeeded()
    expected = [row for row in lines(reference.run_dir) if row[1] not in SAVING]
    folder, found = None, []
    for at in (2 * STEP, 4 * STEP):
        killed = launches.run(*settings, options=options, run_dir=folder, environment={"KILL": str(at)})
        assert killed.code == -signal.SIGKILL
        assert killed.checkpoints[-1] == at  # saved before it validated
        folder = killed.run_dir
    resumed = launches.run(*settings, options=options, run_dir=folder).succeeded()
    assert "is complete" not in resumed.text
    assert resumed.metrics == reference.metrics
    found = [row for row in lines(folder) if row[1] not in SAVING]
    assert sorted(found) == sorted(expected)  # no row twice
    compared = {key: resumed.compared(resumed.summary[key]) for key in ("first", "last")}
    assert compared == {key: reference.compared(reference.summary[key]) for key in ("first", "last")}
    assert "is complete" in launches.run(*settings, options=options, run_dir=folder).succeeded().text


def test_a_hook_stops_a_run_by_declaring_it(launches, added):
    result = launches.run(*SETTINGS, ranks=2, options=added(STOPPING)).succeeded()
    assert (result.summary["status"], result.summary["tokens"]) == ("stopped", STEP)
    assert result.checkpoints == [STEP]
