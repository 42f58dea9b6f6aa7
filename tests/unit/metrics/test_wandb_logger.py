import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mcframe.errors import UserError
from mcframe.hookspecs import Histogram, RunStart
from mcframe.metrics.wandb_logger import RUN_ID, WandbLogger, resolve_mode
from tests.support.wandb_file import finished_records, history, offline_files


@pytest.fixture(autouse=True)
def logged_out(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))


@pytest.fixture
def run_dir(tmp_path):
    path = tmp_path / "my run"
    path.mkdir()
    return path


def test_an_offline_run_has_metrics_config_texts_images_and_histograms(run_dir, capfd, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "openai"]:
        monkeypatch.delitem(sys.modules, name)  # wandb advertises another package to those who import this one
    logger = WandbLogger(RunStart(run_dir, {"gpt.depth": 12, "run.gistnet": "@gistnet.mean"}, None), "offline")
    logger.write(2048, 1, {"train/loss": 5.5, "mc/gist_entry_delta/1": 0.625})
    logger.write(2048, 1, {"val/bpb": 7.9})
    logger.text(2048, "contexts", "··1·<|··")
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    logger.image(2048, "mc/scores", image)
    logger.histogram(2048, "mc/score/0", Histogram([-1.0, 0.0, 2.0], [3, 5]))
    logger.write(4096, 2, {"train/loss": 4.5})
    logger.close()
    assert capfd.readouterr() == ("", "")

    (path,) = offline_files(run_dir)
    found = finished_records(path)
    first, second = history(found)
    media = {name: first.pop(name) for name in list(first) if name.startswith(("contexts/", "mc/score"))}
    shown = {name: value for name, value in first.items() if not name.startswith("_")}
    assert shown == {"train/loss": 5.5, "mc/gist_entry_delta/1": 0.625, "val/bpb": 7.9, "train/tokens": 2048}
    assert (first["_step"], second["_step"], second["train/tokens"]) == (1, 2, 4096)
    page = (path.parent / "files" / media["contexts/path"]).read_text()
    assert "<pre>··1·&lt;|··</pre>" in page
    assert '<meta charset="utf-8">' in page
    assert (np.asarray(Image.open(path.parent / "files" / media["mc/scores/path"])) == image).all()
    assert media["mc/scores/caption"] == "2,048 tokens"
    assert (media["mc/score/0/bins"], media["mc/score/0/values"]) == ([-1.0, 0.0, 2.0], [3, 5])

    run = next(record.run for record in found if record.WhichOneof("record_type") == "run")
    config = {item.key or "/".join(item.nested_key): item.value_json for item in run.config.update}
    assert json.loads(config["gpt.depth"]) == 12
    assert json.loads(config["run.gistnet"]) == "@gistnet.mean"
    axes = [record.metric for record in found if record.WhichOneof("record_type") == "metric"]
    assert any(metric.step_metric == "train/tokens" for metric in axes)
    assert logger.location == ("wandb (offline)", f"wandb sync '{run_dir}/wandb'/offline-run-*-{run.run_id}")


def test_a_resumed_run_has_the_same_id_and_a_fresh_one_another(run_dir):
    ids = []
    for resume in (None, 2048, None):
        WandbLogger(RunStart(run_dir, {"seed": len(ids)}, resume), "offline").close()
        ids.append((run_dir / RUN_ID).read_text().strip())
    assert ids[0] == ids[1] != ids[2]
    assert sorted(path.stem.removeprefix("run-") for path in offline_files(run_dir)) == sorted(ids)


@pytest.mark.parametrize(
    ("mode", "environment", "expected"),
    [
        ("auto", "", "offline"),
        ("auto", "online", "online"),
        ("auto", "disabled", "disabled"),
        ("auto", "dryrun", "offline"),
        ("offline", "online", "offline"),
        ("online", "", "online"),
        ("disabled", "online", "disabled"),
    ],
)
def test_the_mode(monkeypatch, mode, environment, expected):
    if environment:
        monkeypatch.setenv("WANDB_MODE", environment)
    assert resolve_mode(mode) == expected


@pytest.mark.parametrize(("mode", "environment"), [("on", ""), ("", ""), ("auto", "ofline")])
def test_an_unknown_mode_is_a_user_error(monkeypatch, mode, environment):
    monkeypatch.setenv("WANDB_MODE", environment)
    with pytest.raises(UserError) as caught:
        resolve_mode(mode)
    assert "auto, online, offline or disabled" in caught.value.remedy
    assert ("WANDB_MODE" in caught.value.message) == bool(environment)


LOGINS = """
import os, sys
import wandb
from mcframe.metrics.wandb_logger import resolve_mode

logins = list(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
for number, (key, home) in enumerate(logins):
    if os.fork() == 0:  # wandb remembers a login for the life of a process
        os.environ.update({"HOME": home, "NETRC": f"{home}/netrc"} | ({"WANDB_API_KEY": key} if key else {}))
        print(number, resolve_mode("auto"), flush=True)
        os._exit(0)
for _ in logins:
    os.wait()
"""


def test_auto_is_online_for_a_logged_in_user_without_a_prompt(tmp_path):
    """Every connection fails, so that none may be needed."""
    (tmp_path / "login").mkdir()
    (tmp_path / "login" / "netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {'0' * 40}\n")
    logins = [("0" * 40, tmp_path), ("", tmp_path / "login"), ("", tmp_path), ("no key", tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", LOGINS, *(str(each) for login in logins for each in login)],
        env={**os.environ, "https_proxy": "http://127.0.0.1:9"},
        capture_output=True, text=True, stdin=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    assert sorted(done.stdout.splitlines()) == ["0 online", "1 online", "2 offline", "3 offline"]
    (warning,) = done.stderr.splitlines()  # about the malformed key
    assert "the run is kept offline" in warning
