"""One rank fails, or makes other collective calls than the others: one message, and no rank waits for ever."""

import os
import signal
import textwrap
import time

import pytest

pytestmark = pytest.mark.launcher

STEP = 512
SETTINGS = (
    f"run.batch_tokens = {STEP}", f"run.total_tokens = {4 * STEP}", "validation.windows = 4", f"logging.every = {STEP}",
    "validation.every = 0", f"evaluation.every = {STEP}", "run.evaluations = []",
    "run.stall_seconds = 1",
)  # fmt: skip
HEAD = """
    import torch
    import torch.distributed as dist

    from mcframe.hookspecs import EvalResult, Evaluation, LossTerm, Loss, hookimpl
"""
EVALUATION = '''
    class Mine(Evaluation):
        """Calls the model on rank 0 alone."""

        name = "mine"

        def run(self, model):
            tokens = model.held_out(2).tokens
            if dist.get_rank() == 0:
                model.score(tokens, tokens.new_zeros(2, model.tree.blocks), "full")
            return EvalResult({})

    @hookimpl
    def register_plugins(register):
        register("mine", Mine)
'''
HOOK = """
    @hookimpl
    def step_finished(run):
        if run.rank == 0:
            dist.barrier()  # here
"""
GRADIENT = '''
    class Mine(Loss):
        """Its gradient is not finite, on rank 1 alone."""

        name, needs = "mine", ("gists",)

        def __init__(self, shape):
            super().__init__()

        def forward(self, view):
            zero = view.table - view.table
            if dist.get_rank() == 1:
                zero = zero.square().sum(dim=-1).sqrt()  # here
            return LossTerm(zero.flatten(1).mean(dim=1))

    @hookimpl
    def register_plugins(register):
        register("mine", Mine)
'''


@pytest.mark.parametrize(
    ("source", "settings", "messages"),
    [
        (HOOK, (), ("the ranks have waited for each other", "{here} in step_finished; rank 1 at")),
        (GRADIENT, ("run.extra_losses = [@loss.mine]", "deepspeed.zero_stage = 2"), (
            "{here}", "loss.mine of plug-in", "a gradient first is not finite where SqrtBackward0",
        )),
    ],
    ids=["hook", "gradient"],
)  # fmt: skip
def test_ranks_that_disagree_end_with_one_message(launches, tmp_path, source, settings, messages):
    file = tmp_path / "mine.py"
    text = textwrap.dedent(HEAD + source)
    file.write_text(text)
    here = f"mine.py:{text.partition('# here')[0].count(chr(10)) + 1}"
    result = launches.run(*SETTINGS, *settings, ranks=2, options=("--plugin", str(file)))
    assert result.code == 2, result.output[-6000:]
    assert result.errors == 1, result.output[-6000:]
    assert "Traceback" not in result.output
    for message in messages:
        assert message.replace("{here}", here) in result.text


STOPPED = """
    import os
    import signal

    @hookimpl
    def step_finished(run):
        if run.step == 2 and run.rank == {rank}:
            os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.mark.matrix
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank_ends_the_others_by_name(launches, tmp_path, rank):
    """Rank 0 holds the store of the group."""
    file = tmp_path / "mine.py"
    file.write_text(textwrap.dedent(HEAD + STOPPED.replace("{rank}", str(rank))))
    began = []

    def watch(line, process):
        if "mcframe stopped" in line:
            began.append(time.monotonic())
            while process._ranks[1 - rank].exitcode is None and time.monotonic() - began[0] < 20:
                time.sleep(0.1)
            os.kill(process._ranks[rank].pid, signal.SIGKILL)

    result = launches.run(*SETTINGS, "run.stall_seconds = 4", ranks=2, options=("--plugin", str(file)), watch=watch)
    assert time.monotonic() - began[0] < 15  # the other rank ended at once
    assert f"rank {rank} of 2 stopped: no sign of life while rank {1 - rank} waited" in result.text
    assert result.errors == 1, result.output[-6000:]


def test_an_evaluation_with_other_calls_on_some_rank_is_left_on_all(launches, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(textwrap.dedent(HEAD + EVALUATION))
    settings = (*SETTINGS, "run.evaluations = [@evaluation.mine]")
    result = launches.run(*settings, ranks=2, options=("--plugin", str(file))).succeeded()
    for message in (
        "evaluation.mine of plug-in", "expected the same calls of the model on every rank",
        "rank 0: score of [2, 32] focuses under 'full'; rank 1: the end", "the run continues without the evaluation",
    ):  # fmt: skip
        assert message in result.text
