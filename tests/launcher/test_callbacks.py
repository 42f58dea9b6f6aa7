"""Callbacks in real runs: one stops a run, and one that fails on a rank does not end it."""

import textwrap

import pytest

pytestmark = pytest.mark.launcher

STEP = 512
STOPS = (
    "run.callbacks = [@callback.early_stopping]",
    "callback.early_stopping.min_delta = 100.0",
    "callback.early_stopping.patience = 2",
    f"run.batch_tokens = {STEP}",
    f"run.total_tokens = {6 * STEP}",
    f"validation.every = {STEP}",
    f"logging.every = {4 * STEP}",
    "checkpoint.every = 0",
    "validation.windows = 4",
)

WATCHER = '''
    """Reports the norm of a gradient, and fails on one rank."""

    import torch.distributed as dist

    from mcframe.hookspecs import Callback, hookimpl

    class Watcher(Callback):
        name = "watcher"

        def on_start(self, run):
            self.weight = run.model.gpt.lm_head.weight
            assert run.config["run.batch_tokens"] == 512
            assert "next_token" in run.losses

        def after_backward(self, step):
            if dist.get_rank() == 1 and step.step == 2:
                raise OSError("no space left")
            return {"gradient": self.weight.grad.norm(), "loss": step.losses["train/loss"]}

    @hookimpl
    def register_plugins(register):
        register("watcher", Watcher)
'''


def test_a_callback_stops_a_run_cleanly_and_a_resumed_run_has_its_state(launches):
    stopped = launches.run(*STOPS).succeeded()
    assert (stopped.summary["status"], stopped.summary["tokens"]) == ("stopped", 2 * STEP)
    assert stopped.checkpoints == [2 * STEP]
    assert "Stopped by early_stopping: val/loss has not fallen below" in stopped.text
    assert sorted(stopped.metrics) == [0, STEP, 2 * STEP]
    assert "train/loss" in stopped.metrics[2 * STEP]  # what was trained since the last line is logged
    resumed = launches.run(*STOPS, run_dir=stopped.run_dir)
    assert resumed.summary["tokens"] == 3 * STEP  # the readings before the stop count


def test_a_callback_that_fails_on_one_rank_is_dropped_on_all(launches, tmp_path):
    file = tmp_path / "watcher.py"
    file.write_text(textwrap.dedent(WATCHER))
    result = launches.run(
        "run.callbacks = [@callback.watcher]", f"run.batch_tokens = {STEP}", f"run.total_tokens = {4 * STEP}",
        f"logging.every = {STEP}", "validation.windows = 4", ranks=2, options=("--plugin", str(file)),
    ).succeeded()  # fmt: skip
    line = WATCHER.splitlines().index('                raise OSError("no space left")')
    assert "callback.watcher of plug-in" in result.text
    assert "OSError: no space left" in result.text
    assert f"{file}:{line + 1}" in result.text
    logged = [tokens // STEP for tokens, metrics in result.metrics.items() if "callback/watcher/gradient" in metrics]
    assert logged == [1, 2]
    assert all(value > 0 for value in result.curve("callback/watcher/gradient"))
    losses = result.curve("train/loss")
    assert result.curve("callback/watcher/loss") == pytest.approx(losses[:2])
