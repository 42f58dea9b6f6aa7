"""`deepspeed --hostfile` on two hosts, which are network namespaces of this machine: they train together and resume."""

import sys

import pytest

from tests.support.launches import EVERY_STEP, STEP
from tests.support.two_hosts import INTERFACE, missing, two_hosts

pytestmark = [pytest.mark.launcher, pytest.mark.matrix]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    if why := missing():
        pytest.skip(why)
    with two_hosts(tmp_path_factory.mktemp("hosts")) as found:
        yield found


def test_two_hosts_train_together_and_resume(launches, hosts, tmp_path):
    run_dir, variables = tmp_path / "run", tmp_path / "deepspeed_env"
    passed = ("MCFRAME_CACHE", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "COLUMNS", "TORCH_EXTENSIONS_DIR")
    here = {name: launches.environment[name] for name in passed if name in launches.environment}
    here |= {"DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": INTERFACE}
    variables.write_text("".join(f"{name}={value}\n" for name, value in here.items()), "utf-8")

    def train(steps):
        launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hosts.host_file)]
        script = [launches.script, "--gin", "gin/smoke.gin", "--run-dir", str(run_dir)]
        for setting in (*EVERY_STEP, "deepspeed.zero_stage = 1", f"run.total_tokens = {steps * STEP}"):
            script += ["--set", setting]
        environment = {"PATH": hosts.path, "DS_ENV_FILE": str(variables), "DS_ACCELERATOR": "cpu"}
        command = hosts.on("node-a", [*launcher, "--master_port", launches.port(), *script])
        return launches.execute(command, run_dir=run_dir, environment=environment).succeeded()

    first = train(2)
    assert "2 on cpu" in first.text
    assert {line.partition(":")[0] for line in first.output.splitlines()} >= {"node-a", "node-b"}
    assert first.checkpoints[-1] == 2 * STEP
    second = train(4)
    assert "resumed from" in second.text
    settings = (*EVERY_STEP, "deepspeed.zero_stage = 1", f"run.total_tokens = {4 * STEP}")
    alone = launches.run(*settings, ranks=2).succeeded()
    # The first two steps have the schedule of a shorter run.
    assert second.curve("train/loss_lod0")[:1] == pytest.approx(alone.curve("train/loss_lod0")[:1], rel=1e-4)
    assert len(second.curve("train/loss_lod0")) == 4
