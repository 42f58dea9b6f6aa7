import json
import logging

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mcframe.errors import UserError
from mcframe.telemetry import wandb_sink
from mcframe.telemetry.sinks import open_sinks


def test_every_sink_receives_the_same(tmp_path):
    sinks = open_sinks(
        tmp_path / "runs" / "a", rank=0, tensorboard=True, wandb="offline", config={"a": 1}, resume_tokens=None
    )
    sinks.write(2048, 1, {"train/loss": 5.5})
    sinks.text(2048, "contexts", "··1|·")
    sinks.close()
    run_dir = tmp_path / "runs" / "a"
    assert json.loads((run_dir / "metrics.jsonl").read_text())["train/loss"] == 5.5
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("train/loss")] == [5.5]
    assert len(list(run_dir.glob("wandb/offline-run-*/*.wandb"))) == 1
    assert set(sinks.places) == {"metrics", "TensorBoard", "wandb (offline)"}


def test_other_ranks_write_nothing(tmp_path):
    sinks = open_sinks(tmp_path / "run", rank=1, tensorboard=True, wandb="offline", config={}, resume_tokens=None)
    sinks.write(1, 1, {"train/loss": 1.0})
    sinks.text(1, "a", "b")
    sinks.close()
    assert sinks.places == {}
    assert list(tmp_path.iterdir()) == []


def test_the_json_lines_are_always_there(tmp_path):
    sinks = open_sinks(tmp_path, rank=0, tensorboard=False, wandb="disabled", config={}, resume_tokens=None)
    sinks.close()
    assert sinks.places == {"metrics": str(tmp_path / "metrics.jsonl")}
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_wandb_that_does_not_start_costs_one_warning(tmp_path, caplog, monkeypatch):
    def refuse(**_):
        raise OSError("no route to host")

    monkeypatch.setattr("wandb.init", refuse)
    with caplog.at_level(logging.WARNING, "mcframe"):
        sinks = open_sinks(tmp_path, rank=0, tensorboard=False, wandb="offline", config={}, resume_tokens=None)
    (record,) = caplog.records
    assert "wandb (offline) did not start" in record.getMessage()
    assert "no route to host" in record.getMessage()
    sinks.write(1, 1, {"train/loss": 1.0})
    sinks.close()
    assert "train/loss" in (tmp_path / "metrics.jsonl").read_text()


def test_an_unknown_wandb_mode_stops_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="sometimes"):
        open_sinks(tmp_path / "run", rank=0, tensorboard=False, wandb="sometimes", config={}, resume_tokens=None)
    assert not (tmp_path / "run").exists()


def test_wandb_is_not_imported_where_it_is_disabled():
    assert not hasattr(wandb_sink, "wandb")
