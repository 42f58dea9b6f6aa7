"""Rows that wandb and TensorBoard lose when a run is killed come back from metrics.jsonl when it resumes."""

import json
import os
import signal
import time
from collections import Counter

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mcframe.metrics.loggers import open_loggers
from mcframe.metrics.wandb_file import cut_after, records
from tests.support.forked_ranks import CONTEXT
from tests.support.wandb_file import finished_records, history, offline_files
from tests.support.wandb_file import records as read_back

ROWS, KILLED_AT, RESUMED_AT = 300, 270, 250


def write_rows(run_dir, environment, sender):
    """Write the rows of a run in a process group of its own, and wait to be killed."""
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    loggers = open_loggers(run_dir, rank=0, tensorboard=True, wandb="offline", config={}, resume_tokens=None)
    for step in range(KILLED_AT):
        loggers.write(512 * step, step, {"train/loss": step / 7, **{f"mc/filling/{n}": n * step for n in range(20)}})
        if step % 10 == 0:
            loggers.write(512 * step, step, {"train/checkpoint_ms": 1.5 * step})
            loggers.text(512 * step, "samples", f"at {step}")
    # The logger that is killed between two writes.
    loggers._loggers["metrics.jsonl"].write(512 * 250, 250, {"val/loss": 1.25})
    loggers._loggers["metrics.jsonl"].text(512 * 250, "contexts", "lost")
    sender.send("written")
    time.sleep(60)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of a run whose processes were all killed."""
    run_dir = tmp_path_factory.mktemp("killed") / "run"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=write_rows, args=(run_dir, environment, sender))
    process.start()
    sender.close()
    assert receiver.recv() == "written"
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return run_dir


def test_a_resumed_run_has_every_row_once_in_wandb_and_tensorboard(killed):
    (before,) = offline_files(killed)
    held = history(read_back(before.read_bytes()))
    loggers = open_loggers(killed, rank=0, tensorboard=True, wandb="offline", config={}, resume_tokens=512 * RESUMED_AT)
    for step in range(RESUMED_AT + 1, ROWS):
        loggers.write(512 * step, step, {"train/loss": step / 7})
    loggers.close()

    first, second = offline_files(killed)
    rows = [*history(read_back(first.read_bytes())), *history(finished_records(second))]
    assert Counter(row["_step"] for row in rows) == Counter(range(ROWS))
    assert len(held) < KILLED_AT or max(row["_step"] for row in held) > RESUMED_AT  # a gap, or rows to cut
    by_step = {row["_step"]: row for row in rows}
    for step in range(ROWS):
        assert by_step[step]["train/loss"] == pytest.approx(step / 7)
        assert by_step[step]["train/tokens"] == 512 * step
    assert all(by_step[step]["train/checkpoint_ms"] == 1.5 * step for step in range(0, RESUMED_AT + 1, 10))

    events = EventAccumulator(str(killed / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [512 * step for step in range(ROWS)]
    assert [event.step for event in events.Scalars("val/loss")] == [512 * RESUMED_AT]
    assert [event.step for event in events.Tensors("contexts/text_summary")] == [512 * RESUMED_AT]
    # This reader of TensorBoard, unlike its pages, keeps texts after the step of resumption.
    texts = [event.step for event in events.Tensors("samples/text_summary") if event.step <= 512 * RESUMED_AT]
    assert texts == [512 * step for step in range(0, RESUMED_AT + 1, 10)]
    lines = [json.loads(line) for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert sum("val/loss" in line for line in lines) == 1


def test_a_file_cut_at_any_byte_keeps_its_complete_rows(killed, tmp_path):
    """A crash may cut the file anywhere. What remains is a prefix that ends with a complete record."""
    content = offline_files(killed)[0].read_bytes()
    ends = [end for _, end, _ in records(content)]
    file = tmp_path / "run.wandb"
    for cut in (0, 5, 7, 9, *range(len(content) - 40, len(content) + 1, 7), ends[len(ends) // 2] + 3):
        file.write_bytes(content[:cut])
        steps = cut_after(file, 10**9)
        kept = file.read_bytes()
        assert content.startswith(kept)
        assert len(kept) in (0, 5, 7, *ends)
        assert steps == {row["_step"] for row in history(record for _, _, record in records(kept))}
        file.write_bytes(content[:cut])
        assert cut_after(file, 3) == {step for step in steps if step <= 3}
        assert cut_after(file, 3) == {step for step in steps if step <= 3}
