import json
import logging
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mcframe.config.run_config import load_run_config
from mcframe.errors import UserError
from mcframe.hookspecs import Histogram, MetricLogger, RunStart
from mcframe.metrics import wandb_logger as wandb_sink
from mcframe.metrics.jsonl_logger import METRICS
from mcframe.metrics.loggers import open_loggers
from mcframe.metrics.prometheus_logger import PrometheusLogger
from mcframe.registry.discovery import PluginOptions
from mcframe.training.trainer import Trainer


def test_every_sink_receives_the_same(tmp_path):
    loggers = open_loggers(
        tmp_path / "runs" / "a", rank=0, tensorboard=True, wandb="offline", config={"a": 1}, resume_tokens=None
    )
    loggers.write(2048, 1, {"train/loss": 5.5})
    loggers.text(2048, "contexts", "··1|·")
    loggers.close()
    run_dir = tmp_path / "runs" / "a"
    assert json.loads((run_dir / "metrics.jsonl").read_text())["train/loss"] == 5.5
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("train/loss")] == [5.5]
    assert len(list(run_dir.glob("wandb/offline-run-*/*.wandb"))) == 1
    assert set(loggers.places) == {"metrics", "TensorBoard", "wandb (offline)"}


def test_other_ranks_write_nothing(tmp_path):
    loggers = open_loggers(tmp_path / "run", rank=1, tensorboard=True, wandb="offline", config={}, resume_tokens=None)
    loggers.write(1, 1, {"train/loss": 1.0})
    loggers.text(1, "a", "b")
    loggers.close()
    assert loggers.places == {}
    assert list(tmp_path.iterdir()) == []


def test_the_json_lines_are_always_there(tmp_path):
    loggers = open_loggers(tmp_path, rank=0, tensorboard=False, wandb="disabled", config={}, resume_tokens=None)
    loggers.close()
    assert loggers.places == {"metrics": str(tmp_path / "metrics.jsonl")}
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_wandb_that_does_not_start_costs_one_warning(tmp_path, caplog, monkeypatch):
    def refuse(**_):
        raise OSError("no route to host")

    monkeypatch.setattr("wandb.init", refuse)
    with caplog.at_level(logging.WARNING, "mcframe"):
        loggers = open_loggers(tmp_path, rank=0, tensorboard=False, wandb="offline", config={}, resume_tokens=None)
    (record,) = caplog.records
    assert "wandb (offline) did not start" in record.getMessage()
    assert "no route to host" in record.getMessage()
    loggers.write(1, 1, {"train/loss": 1.0})
    loggers.close()
    assert "train/loss" in (tmp_path / "metrics.jsonl").read_text()


def test_an_unknown_wandb_mode_stops_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="sometimes"):
        open_loggers(tmp_path / "run", rank=0, tensorboard=False, wandb="sometimes", config={}, resume_tokens=None)
    assert not (tmp_path / "run").exists()


def test_wandb_is_not_imported_where_it_is_disabled():
    assert not hasattr(wandb_sink, "wandb")


# ---- sinks of plug-ins ---------------------------------------------------------------------------
class Heard(MetricLogger):
    """Writes down what it is told; raises where it is told something called `fatal`."""

    def __init__(self, run):
        self.run, self.told = run, []

    def write(self, tokens, step, metrics):
        self._note("write", tokens, step, dict(metrics))

    def text(self, tokens, name, text):
        self._note("text", tokens, name, text)

    def image(self, tokens, name, image):
        self._note("image", tokens, name, image.shape)

    def histogram(self, tokens, name, histogram):
        self._note("histogram", tokens, name, histogram)

    def close(self):
        self._note("close")

    def _note(self, *what):
        self.told.append(what)
        if "fatal" in what:
            raise OSError("disk full")


def opened(tmp_path, **others):
    return open_loggers(
        tmp_path, rank=0, tensorboard=False, wandb="disabled", config={"a": 1}, resume_tokens=7, others=others
    )


def test_a_sink_is_told_everything_and_says_where_it_lies(tmp_path):
    made = []

    def build(run):
        made.append(Heard(run))
        return made[0]

    loggers = opened(tmp_path, heard=build)
    picture, spread = np.zeros((2, 3, 3), np.uint8), Histogram([0.0, 1.0], [4])
    loggers.write(2048, 1, {"train/loss": 5.5})
    loggers.text(2048, "contexts", "··1|·")
    loggers.image(2048, "scores", picture)
    loggers.histogram(2048, "score", spread)
    loggers.close()
    (heard,) = made
    assert (heard.run.directory, heard.run.config, heard.run.resume_tokens) == (tmp_path, {"a": 1}, 7)
    assert heard.told == [
        ("write", 2048, 1, {"train/loss": 5.5}), ("text", 2048, "contexts", "··1|·"),
        ("image", 2048, "scores", (2, 3, 3)), ("histogram", 2048, "score", spread), ("close",),
    ]  # fmt: skip
    assert loggers.places == {"metrics": str(tmp_path / "metrics.jsonl")}  # it has no place of its own


def test_a_sink_that_raises_is_named_once_closed_and_left_out(tmp_path, caplog):
    failing, others = Heard(None), Heard(None)
    loggers = opened(
        tmp_path, **{"@logger.mine of plug-in 'x' of pack 1.0": lambda run: failing, "b": lambda run: others}
    )
    with caplog.at_level(logging.WARNING, "mcframe"):
        loggers.text(1, "fatal", "")
        loggers.write(2, 1, {"train/loss": 1.0})
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0].startswith("@logger.mine of plug-in 'x' of pack 1.0 failed, and the run goes on without it")
    assert "OSError: disk full" in messages[0]
    assert len(messages) == 2  # `b` heard of it too
    assert [told[0] for told in failing.told] == ["text", "close"]
    assert "train/loss" in (tmp_path / "metrics.jsonl").read_text()


def test_the_record_of_the_run_is_not_left_out(tmp_path):
    loggers = opened(tmp_path)
    loggers.close()
    with pytest.raises(ValueError, match="closed file"):
        loggers.write(1, 1, {"train/loss": 1.0})


def trainer_of(loggers, train, failed):
    """As much of a trainer as ends a run."""
    hooks = SimpleNamespace(run_failed=lambda run, error: failed.append(error))
    return SimpleNamespace(
        _run=train, loggers=loggers, hooks=hooks, _info=lambda: None, _finish=lambda *_: pytest.fail("ended well")
    )


@pytest.fixture
def on_a_full_disk(tmp_path):
    """Two sinks; what the record holds back cannot be written when it is closed, either."""
    heard = Heard(None)
    loggers = opened(tmp_path, heard=lambda run: heard)
    loggers._sinks[METRICS]._file = Path("/dev/full").open("w")  # noqa: SIM115 - the sink closes it
    return loggers, heard


def test_a_full_disk_closes_every_sink_once_and_is_told_to_the_hooks(on_a_full_disk):
    (loggers, heard), failed = on_a_full_disk, []
    trainer = trainer_of(loggers, lambda: loggers.write(1, 1, {"train/loss": 1.0}), failed)
    with pytest.raises(OSError, match="No space left") as caught:
        Trainer.run(trainer)
    assert failed == [caught.value]
    assert heard.told == [("write", 1, 1, {"train/loss": 1.0}), ("close",)]
    loggers.close()
    assert heard.told.count(("close",)) == 1


def test_a_record_that_cannot_be_closed_at_the_end_is_a_failure(on_a_full_disk):
    (loggers, heard), failed = on_a_full_disk, []
    with pytest.raises(OSError, match="No space left") as caught:
        Trainer.run(trainer_of(loggers, lambda: loggers._sinks[METRICS]._file.write("a line"), failed))
    assert failed == [caught.value]
    assert heard.told == [("close",)]


REFUSING = """
from mcframe.hookspecs import hookimpl

def refuse(run):
    raise ConnectionError("nobody there")

@hookimpl
def register_plugins(register):
    register("refusing", refuse)
    register("no_sink", lambda run: {})
"""


@pytest.mark.parametrize(("name", "told"), [("refusing", "ConnectionError: nobody there"), ("no_sink", "MetricLogger")])
def test_a_sink_that_cannot_be_opened_stops_the_start(tmp_path, smoke, name, told):
    file = tmp_path / "refusing.py"
    file.write_text(REFUSING)
    run_config = load_run_config(
        [smoke], [f"run.loggers = [@logger.{name}]"], PluginOptions(named=(str(file),))
    ).run_config
    with pytest.raises(UserError) as caught:
        opened(tmp_path, mine=run_config.loggers[0])
    assert f"sink.{name}" in caught.value.message
    assert told in caught.value.message


def test_prometheus_holds_the_latest_value_of_every_metric(tmp_path):
    sink = PrometheusLogger(RunStart(tmp_path, {}, None))
    sink.write(2048, 1, {"train/loss": 5.5, "mc/lod_delta/1": math.nan})
    sink.write(4096, 2, {"train/loss": 4.5, "val/bpb": math.inf})
    label = '{run="' + tmp_path.name + '"}'
    assert (tmp_path / "metrics.prom").read_text().splitlines() == [
        f"mcframe_mc_lod_delta_1{label} NaN", f"mcframe_step{label} 2.0", f"mcframe_tokens{label} 4096.0",
        f"mcframe_train_loss{label} 4.5", f"mcframe_val_bpb{label} +Inf",
    ]  # fmt: skip
    assert sink.place == ("Prometheus", str(tmp_path / "metrics.prom"))
    elsewhere = tmp_path / "watched" / "a.prom"
    PrometheusLogger(RunStart(tmp_path, {}, None), file=str(elsewhere), prefix="x:").write(1, 1, {"a": 1.0})
    assert elsewhere.read_text().startswith("x:a{")


def page_code(root):
    page = (root / "docs" / "plugins" / "sink.md").read_text("utf-8")
    return re.search(r"^```python\n((?:(?!^```).)*class TabSeparated.*?)^```$", page, re.M | re.S)[1]


FAILING = """
from mcframe.hookspecs import MetricLogger, hookimpl

class Failing(MetricLogger):
    def __init__(self, run):
        (run.directory / "failing.txt").write_text("opened")

    def write(self, tokens, step, metrics):
        if tokens:
            raise OSError("no space left")

@hookimpl
def register_plugins(register):
    register("failing", Failing)
"""


@pytest.mark.launcher
def test_sinks_of_installed_packages_in_a_run_of_two_ranks(launches, site, root):
    """The page's example and one that fails: each opened on one rank, in a run that ends well."""
    site.install("a_package_of_tables", page_code(root))
    site.install("a_package_that_fails", FAILING)
    result = launches.run(
        "run.total_tokens = 2048", "cadence.log_tokens = 1024", "logging.tensorboard = False",
        "run.loggers = [@logger.failing, @logger.tab_separated]", "sink.tab_separated.file = 'all.tsv'",
        ranks=2, environment=site.environment,
    ).succeeded()  # fmt: skip
    rows = [line.split("\t") for line in (result.run_dir / "all.tsv").read_text().splitlines()]
    written = [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    expected = [[str(w["tokens"]), n, str(w[n])] for w in written for n in w if n not in ("tokens", "step", "time")]
    assert rows == expected
    assert (result.run_dir / "failing.txt").exists()
    message = "@logger.failing of plug-in 'it' of a_package_that_fails 1.0 failed, and the run goes on without it"
    assert result.words.count(message) == 1
    assert "OSError: no space left" in result.words
    assert f"table {result.run_dir / 'all.tsv'}" in result.words
    assert "nothing reads" not in result.words
    assert "sink.tab_separated.file = 'all.tsv'" in (result.run_dir / "operative.gin").read_text()
