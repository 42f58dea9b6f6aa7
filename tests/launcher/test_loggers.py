import json
import logging
import math
import os
import re
import resource
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mcframe.config.run_config import load_run_config
from mcframe.errors import UserError
from mcframe.hookspecs import Histogram, MetricLogger, RunStart
from mcframe.metrics.jsonl_logger import METRICS
from mcframe.metrics.loggers import open_loggers
from mcframe.metrics.prometheus_logger import PrometheusLogger
from mcframe.metrics.wandb_logger import WandbLogger
from mcframe.registry.discovery import PluginOptions


def opened(folder, rank=0, tensorboard=False, wandb="disabled", **others):
    return open_loggers(
        folder, rank=rank, tensorboard=tensorboard, wandb=wandb, config={"a": 1}, resume_tokens=7, others=others
    )


def test_every_logger_receives_the_metrics(tmp_path):
    loggers = opened(tmp_path, tensorboard=True, wandb="offline")
    loggers.write(2048, 1, {"train/loss": 5.5})
    loggers.text(2048, "contexts", "··1|·")
    loggers.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["train/loss"] == 5.5
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("train/loss")] == [5.5]
    assert len(list(tmp_path.glob("wandb/offline-run-*/*.wandb"))) == 1
    assert set(loggers.locations) == {"metrics", "TensorBoard", "wandb (offline)"}


def test_other_ranks_write_nothing(tmp_path):
    loggers = opened(tmp_path / "run", rank=1, tensorboard=True, wandb="offline")
    loggers.write(1, 1, {"train/loss": 1.0})
    loggers.text(1, "a", "b")
    loggers.close()
    assert loggers.locations == {}
    assert list(tmp_path.iterdir()) == []


def test_metrics_jsonl_is_always_written(tmp_path):
    loggers = opened(tmp_path)
    loggers.close()
    assert loggers.locations == {"metrics": str(tmp_path / "metrics.jsonl")}
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_wandb_that_does_not_start_costs_one_warning(tmp_path, caplog, monkeypatch):
    def refuse(**_):
        raise OSError("no route to host")

    monkeypatch.setattr("wandb.init", refuse)
    with caplog.at_level(logging.WARNING, "mcframe"):
        loggers = opened(tmp_path, wandb="offline")
    (record,) = caplog.records
    assert "no route to host" in record.getMessage()
    loggers.write(1, 1, {"train/loss": 1.0})
    loggers.close()
    assert "train/loss" in (tmp_path / "metrics.jsonl").read_text()


def test_an_unknown_wandb_mode_stops_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="sometimes"):
        opened(tmp_path / "run", wandb="sometimes")
    assert not (tmp_path / "run").exists()


# ---- loggers of plug-ins ---------------------------------------------------------------------------
class Recording(MetricLogger):
    """Logger that records its calls, and raises at a call with the name `fatal`."""

    def __init__(self, run):
        self.run, self.calls = run, []

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

    def _note(self, *call):
        self.calls.append(call)
        if "fatal" in call:
            raise OSError("disk full")


def test_a_logger_receives_all_calls(tmp_path):
    recordings = []
    loggers = opened(tmp_path, recording=lambda run: recordings.append(Recording(run)) or recordings[0])
    picture, spread = np.zeros((2, 3, 3), np.uint8), Histogram([0.0, 1.0], [4])
    loggers.write(2048, 1, {"train/loss": 5.5})
    loggers.text(2048, "contexts", "··1|·")
    loggers.image(2048, "scores", picture)
    loggers.histogram(2048, "score", spread)
    loggers.close()
    (recording,) = recordings
    assert (recording.run.directory, recording.run.config, recording.run.resume_tokens) == (tmp_path, {"a": 1}, 7)
    assert recording.calls == [
        ("write", 2048, 1, {"train/loss": 5.5}), ("text", 2048, "contexts", "··1|·"),
        ("image", 2048, "scores", (2, 3, 3)), ("histogram", 2048, "score", spread), ("close",),
    ]  # fmt: skip
    assert loggers.locations == {"metrics": str(tmp_path / "metrics.jsonl")}  # it has no location


def test_a_logger_that_raises_is_reported_closed_and_removed(tmp_path, caplog):
    failing, others = Recording(None), Recording(None)
    loggers = opened(
        tmp_path, **{"@logger.mine of plug-in 'x' of pack 1.0": lambda run: failing, "b": lambda run: others}
    )
    with caplog.at_level(logging.WARNING, "mcframe"):
        loggers.text(1, "fatal", "")
        loggers.write(2, 1, {"train/loss": 1.0})
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0].startswith("@logger.mine of plug-in 'x' of pack 1.0 failed")
    assert "OSError: disk full" in messages[0]
    assert len(messages) == 2  # `b` raised, too
    assert [call[0] for call in failing.calls] == ["text", "close"]
    assert "train/loss" in (tmp_path / "metrics.jsonl").read_text()


def test_an_event_file_that_cannot_be_written_costs_one_warning(tmp_path, caplog, monkeypatch):
    """TensorBoard writes in a thread of its own, whose exceptions Python prints as a traceback."""
    printed = []
    monkeypatch.setattr(threading, "excepthook", printed.append)
    loggers = open_loggers(tmp_path, rank=0, tensorboard=True, wandb="disabled", config={}, resume_tokens=None)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
    for step in range(50):
        loggers.write(step, step, {"train/loss": 3.0})
    loggers.close()
    assert caplog.text.count("TensorBoard failed, and the run continues without it: OSError") == 1
    assert printed == []
    assert threading.excepthook == printed.append
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 50


def test_an_offline_file_of_wandb_that_does_not_grow_is_an_error(tmp_path):
    """Its service drops in silence what it cannot write; tests/chaos/surroundings.py has the real one."""
    logger, file = object.__new__(WandbLogger), tmp_path / "run.wandb"
    file.write_bytes(b"header")
    logger._offline, logger._file, logger._size, logger._unwritten = tmp_path, file, 0, 0
    logger._run = SimpleNamespace(log=lambda *_, **__: None, finish=lambda: file.write_bytes(b"all records"))
    logger._teardown = lambda: None
    rows = {f"{'name' * 2000}/{number}": 1.0 for number in range(20)}
    for step in range(13):  # 2 MiB
        logger.write(step, step, rows)
    with pytest.raises(OSError, match=r"run\.wandb does not grow"):
        logger.write(13, 13, rows)
    logger.close()  # it grows
    logger._run.finish = lambda: None
    with pytest.raises(OSError, match=r"run\.wandb does not grow"):
        logger.close()


def test_a_full_disk_is_an_error_and_closes_every_logger_once(tmp_path):
    recording = Recording(None)
    loggers = opened(tmp_path, recording=lambda run: recording)
    loggers._loggers[METRICS]._file = Path("/dev/full").open("w")  # noqa: SIM115 - the logger closes it
    for call in (lambda: loggers.write(1, 1, {"train/loss": 1.0}), loggers.close):
        with pytest.raises(UserError, match=r"metrics\.jsonl: no space left"):
            call()
    loggers.close()
    assert recording.calls == [("write", 1, 1, {"train/loss": 1.0}), ("close",)]


REFUSING = """
from mcframe.hookspecs import MetricLogger, hookimpl

def refuse(run) -> MetricLogger:
    raise ConnectionError("no route to host")

def build_a_dict(run) -> MetricLogger:
    return {}

@hookimpl
def register_plugins(register):
    register("refusing", refuse)
    register("not_a_logger", build_a_dict)
"""


@pytest.mark.parametrize(
    ("name", "message"), [("refusing", "ConnectionError: no route to host"), ("not_a_logger", "MetricLogger")]
)
def test_a_logger_that_cannot_be_opened_stops_the_start(tmp_path, smoke, name, message):
    file = tmp_path / "refusing.py"
    file.write_text(REFUSING)
    run_config = load_run_config(
        [smoke], [f"run.loggers = [@logger.{name}]"], PluginOptions(named=(str(file),))
    ).run_config
    with pytest.raises(UserError) as caught:
        opened(tmp_path, mine=run_config.loggers[0])
    assert f"logger.{name}" in caught.value.message
    assert message in caught.value.message


def test_prometheus_file_has_the_latest_value_of_every_metric(tmp_path):
    logger = PrometheusLogger(RunStart(tmp_path, {}, None))
    logger.write(2048, 1, {"train/loss": 5.5, "mc/lod_delta/1": math.nan})
    logger.write(4096, 2, {"train/loss": 4.5, "val/bpb": math.inf})
    assert logger.location == ("Prometheus", str(tmp_path / "metrics.prom"))
    samples = [
        s for family in text_string_to_metric_families((tmp_path / "metrics.prom").read_text()) for s in family.samples
    ]
    assert {sample.labels["run"] for sample in samples} == {tmp_path.name}
    values = {sample.name: sample.value for sample in samples}
    assert math.isnan(values.pop("mcframe_mc_lod_delta_1"))
    assert values == {
        "mcframe_step": 2.0, "mcframe_tokens": 4096.0, "mcframe_train_loss": 4.5, "mcframe_val_bpb": math.inf,
    }  # fmt: skip
    elsewhere = tmp_path / "watched" / "a.prom"
    PrometheusLogger(RunStart(tmp_path, {}, None), file=str(elsewhere), prefix="x:").write(1, 1, {"a": 1.0})
    assert "\nx:a{" in elsewhere.read_text()
    assert [path.name for path in elsewhere.parent.iterdir()] == ["a.prom"]


def page_code(root):
    page = (root / "docs" / "plugins" / "logger.md").read_text("utf-8")
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
def test_loggers_of_installed_packages_in_a_run_of_two_ranks(launches, site, root):
    """The example of the page and a failing logger: each opened on one rank, in a run that ends well."""
    site.install("a_package_of_tables", page_code(root))
    site.install("a_package_that_fails", FAILING)
    result = launches.run(
        "run.batch_tokens = 512", "run.total_tokens = 1024", "logging.every = 512", "logging.tensorboard = False",
        "validation.windows = 4",
        "run.loggers = [@logger.failing, @logger.tab_separated]", "logger.tab_separated.file = 'all.tsv'",
        ranks=2, environment=site.environment,
    ).succeeded()  # fmt: skip
    rows = [line.split("\t") for line in (result.run_dir / "all.tsv").read_text().splitlines()]
    written = [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    expected = [[str(w["tokens"]), n, str(w[n])] for w in written for n in w if n not in ("tokens", "step", "time")]
    assert rows == expected
    assert (result.run_dir / "failing.txt").exists()
    message = "@logger.failing of plug-in 'it' of a_package_that_fails 1.0 failed"
    assert result.text.count(message) == 2  # as it happens, and at the end
    assert "OSError: no space left" in result.text
    assert f"table {result.run_dir / 'all.tsv'}" in result.text
    assert "nothing reads" not in result.text
    assert "logger.tab_separated.file = 'all.tsv'" in (result.run_dir / "operative.gin").read_text()


@pytest.mark.parametrize("method", ["write", "close"])
def test_a_logger_that_blocks_is_named_and_does_not_hold_up_the_run(tmp_path, caplog, monkeypatch, method):
    monkeypatch.setattr("mcframe.metrics.loggers.SLOW_S", 0.05)
    monkeypatch.setattr("mcframe.metrics.loggers.ABANDONED_S", 0.05)
    released = threading.Event()

    def blocks(self, *_):
        released.wait(0.3 if method == "write" else None)

    slow = type("Slow", (MetricLogger,), {"write": lambda *_: None, "close": lambda *_: None, method: blocks})
    loggers = opened(tmp_path, slow=lambda start: slow())
    loggers.write(1, 1, {"train/loss": 1.0})
    loggers.close()
    released.set()
    *_, warning = caplog.messages
    assert "slow failed, and the run continues" in warning
    assert ("slow has blocked the run for 0.05 s" in caplog.text) == (method == "write")
    assert "metrics" not in warning


def test_a_logger_that_blocks_for_ever_is_removed_and_called_in_its_thread(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("mcframe.metrics.loggers.SLOW_S", 0.05)
    monkeypatch.setattr("mcframe.metrics.loggers.ABANDONED_S", 0.05)
    threads = []

    def blocks(self, *_):
        threads.append(threading.current_thread())
        os.read(pipe, 1)  # a call of the system that never returns

    pipe, other = os.pipe()
    loggers = opened(tmp_path, stuck=lambda start: type("Stuck", (MetricLogger,), {"write": blocks})())
    loggers.write(1, 1, {"train/loss": 1.0})
    loggers.write(2, 2, {"train/loss": 1.0})
    assert threads == [threading.main_thread()]
    assert "stuck failed, and the run continues without it: TimeoutError: it did not return within 0.1 s" in caplog.text
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    loggers.close()
    for each in (pipe, other):
        os.close(each)


def test_a_run_whose_folder_is_deleted_stops(tmp_path):
    """An open file that was deleted takes lines which are lost."""
    loggers = opened(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be written: the file has been deleted"):
        loggers.write(1, 1, {"train/loss": 1.0})


def test_a_limit_of_the_size_of_files_is_named(tmp_path):
    loggers = opened(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        loggers.write(1, 1, {"train/loss": 1.0})
        with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be written: File too large"):
            loggers.write(2, 2, {"train/loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
