"""A host file of two nodes: the launcher of each node is started by hand, which `--no_ssh` requires."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

pytestmark = [pytest.mark.launcher, pytest.mark.matrix]

SHORT = ("run.batch_tokens = 512", "run.total_tokens = 1024", "logging.every = 512", "validation.every = 0")


def test_two_nodes_train_like_one(launches, tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("node-a slots=1\nnode-b slots=1\n", "utf-8")
    port, run_dir = launches.port(), tmp_path / "run"
    settings = [part for setting in SHORT for part in ("--set", setting)]

    def node(rank):
        launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hosts), "--no_ssh"]
        launcher += ["--node_rank", str(rank), "--master_addr", "127.0.0.1", "--master_port", port]
        script = [launches.script, "--gin", "gin/smoke.gin", "--run-dir", str(run_dir), *settings]
        return launches.execute([*launcher, *script], run_dir=run_dir)

    with ThreadPoolExecutor(2) as both:
        first, second = both.map(node, (0, 1))
    assert "2 on cpu" in first.succeeded().text
    assert "Run finished" not in second.succeeded().text  # rank 0 prints
    alone = launches.run(*SHORT).succeeded()
    assert first.curve("train/loss") == pytest.approx(alone.curve("train/loss"), abs=1e-3)
    assert len(alone.curve("train/loss")) == 2
