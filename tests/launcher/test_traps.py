"""Silent errors of DeepSpeed and Python that mcframe guards its users against."""

import ast
import json
import os
import shutil
import sys
import textwrap
from pathlib import Path

import pytest
from filelock import FileLock

from mcframe.config.run_config import load_run_config
from mcframe.errors import UserError
from mcframe.training import engine
from mcframe.training.build import build_optimizer
from mcframe.training.engine import extensions_directory
from mcframe.training.engine_config import RESERVED_DEEPSPEED_KEYS, engine_config
from tests.support.forked_ranks import CONTEXT
from tests.support.shared_runs import SHARDED

launcher = pytest.mark.launcher

STEPS = 4
SHORT = (
    "run.batch_tokens = 512", f"run.total_tokens = {STEPS * 512}", "logging.every = 512", "validation.every = 0",
    "validation.windows = 4",
)  # fmt: skip


def configured(smoke, *settings):
    """DeepSpeed's configuration for a run."""
    run_config = load_run_config([smoke], list(settings)).run_config
    return engine_config(run_config, build_optimizer(run_config), 4, 2)


# ---- Muon and clipping ---------------------------------------------------------------------------
def test_muon_is_not_clipped_and_adamw_is(smoke):
    muon = "run.optimizer = @optimizer.muon"
    assert configured(smoke, muon)["gradient_clipping"] == 0.0
    assert configured(smoke)["gradient_clipping"] == 1.0
    assert configured(smoke, muon, "optimizer.gradient_clipping = 0.0")["gradient_clipping"] == 0.0


@pytest.mark.parametrize("path", RESERVED_DEEPSPEED_KEYS)
@pytest.mark.parametrize("value", [1.0, {}, False])
def test_deepspeed_settings_cannot_set_keys_that_mcframe_sets(smoke, path, value):
    settings = value
    for key in reversed(path.split(".")):
        settings = {key: settings}
    # DeepSpeed's own clipping would clip Muon's update at ZeRO 1 to 3 and not at 0.
    with pytest.raises(UserError) as caught:
        configured(smoke, "run.optimizer = @optimizer.muon", f"deepspeed.settings = {settings!r}")
    assert repr(path) in caught.value.message
    assert RESERVED_DEEPSPEED_KEYS[path] in caught.value.remedy


def test_keys_of_every_trap_are_reserved():
    assert {"gradient_clipping", "optimizer", "activation_checkpointing"} <= set(RESERVED_DEEPSPEED_KEYS)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_muon_at_zero_3_never_scatters_its_gradients(smoke, stage):
    settings = (
        f"deepspeed.zero_stage = {stage}",
        "deepspeed.settings = {'zero_optimization': {'reduce_scatter': True, 'sub_group_size': 1000}}",
    )
    zero = configured(smoke, "run.optimizer = @optimizer.muon", *settings)["zero_optimization"]
    assert zero == {"stage": stage, "reduce_scatter": stage != 3, "sub_group_size": 1000}
    assert configured(smoke, *settings)["zero_optimization"]["reduce_scatter"] is True


# ---- reentrant checkpointing ---------------------------------------------------------------------
def test_every_checkpoint_call_is_non_reentrant(root):
    calls = [
        (file, call)
        for folder in ("mcframe", "plugins")
        for file in (root / folder).rglob("*.py")
        for call in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(call, ast.Call)
        and ast.unparse(call.func).split(".")[-1] in ("checkpoint", "checkpoint_sequential")
    ]
    assert len(calls) >= 2
    for file, call in calls:
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert keywords.get("use_reentrant") == "False", f"{file}:{call.lineno}"


# ---- a plug-in that records: the script's folder, and one backward a micro-batch ----------------------------------
SPY = """
    import json

    import config
    import context
    import data
    import deepspeed
    from mcframe.hookspecs import hookimpl

    EVENTS = []

    def noted(name):
        original = getattr(deepspeed.DeepSpeedEngine, name)

        def method(self, *arguments, **options):
            EVENTS.append(name)
            return original(self, *arguments, **options)

        setattr(deepspeed.DeepSpeedEngine, name, method)

    for name in ("forward", "backward", "step"):
        noted(name)

    @hookimpl
    def run_started():
        EVENTS.clear()

    @hookimpl
    def step_finished(run):
        whose = [module.WHOSE for module in (data, config, context)]
        (run.directory / f"spy-{run.step}.json").write_text(json.dumps({"events": EVENTS, "whose": whose}))
        EVENTS.clear()
"""


# ---- stale gradients at ZeRO 3 -------------------------------------------------------------------
TRAP = """
    import sys

    from mcframe.training.engine import prepare_environment, start_distributed

    prepare_environment()
    start_distributed()

    import deepspeed
    import torch

    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.always = torch.nn.Linear(4, 4)
            self.sometimes = torch.nn.Linear(4, 4)

        def forward(self, x, both):
            return (self.always(x) + (self.sometimes(x) if both else 0)).square().mean()

    def weight(stage):
        '''Return whether the part that the second step skips moves in that step.'''
        torch.manual_seed(0)
        model = Two()
        engine, *_ = deepspeed.initialize(
            model=model,
            # Without momentum, a weight without a gradient does not move.
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            config={
                "train_batch_size": 2,
                "zero_optimization": {"stage": stage},
                "zero_allow_untested_optimizer": True,
                "gradient_clipping": 0.0,
            },
        )
        seen = []
        for both in (True, False):
            engine.backward(engine(torch.ones(2, 4), both))
            engine.step()
            with deepspeed.zero.GatheredParameters(list(model.sometimes.parameters()), enabled=stage == 3):
                seen.append(model.sometimes.weight.detach().clone())
        return (seen[0] - seen[1]).abs().max().item()

    print("moved", {stage: weight(stage) > 1e-4 for stage in (1, 3)})
"""

SKIPPING = """
    import torch
    from mcframe.hookspecs import LensNet, hookimpl

    class Skipping(LensNet):
        def __init__(self, shape):
            super().__init__()
            self.always = torch.nn.Linear(shape.width, 1)
            self.sometimes = torch.nn.Linear(shape.width, 1)
            self.calls = 0

        def forward(self, context, embeddings):
            scores = self.always(embeddings)
            if self.training:
                self.calls += 1
                if self.calls % 2:
                    scores = scores + self.sometimes(embeddings)
            return scores.squeeze(-1).tanh()

    @hookimpl
    def register_plugins(register):
        register("skipping", Skipping)
"""


@launcher
@pytest.mark.matrix
def test_deepspeed_applies_a_stale_gradient_again_at_zero_3(launches):
    """The trap itself. If this fails, DeepSpeed has been fixed, and mcframe need not stop such runs any more."""
    command = [sys.executable, "-c", textwrap.dedent(TRAP)]
    assert "moved {1: False, 3: True}" in launches.execute(command).succeeded().output


@launcher
def test_a_plugin_that_skips_a_parameter_is_stopped_at_zero_3(launches, site):
    site.install("skipping", SKIPPING)
    settings = (*SHORT, "run.lensnet = @lensnet.skipping", "run.micro_batch = 4", "deepspeed.zero_stage = 3")
    result = launches.run(*settings, environment=site.environment)
    assert result.code == 2, result.output[-6000:]
    assert "no gradient reached lensnet.sometimes.bias and 1 more parameters in this step" in result.text
    assert "Traceback" not in result.output
    assert len(result.curve("train/loss")) == 1


@launcher
def test_at_zero_1_it_trains_with_one_backward_a_micro_batch_among_modules_called_data(launches, site, tmp_path):
    """Several checks in one run, to save time: skipping is allowed, backward runs once, no name is shadowed."""
    site.install("skipping", SKIPPING)
    site.install("spying", SPY)
    for name in ("data", "config", "context", "training", "run"):
        (site.folder / f"{name}.py").write_text("WHOSE = 'user'\n")
    run_dir = tmp_path / "run"
    command = [sys.executable, launches.script, "--gin", "gin/smoke.gin", "--run-dir", str(run_dir)]
    skipping = ("run.lensnet = @lensnet.skipping", "run.micro_batch = 1", "deepspeed.zero_stage = 1")
    hooks = "run.hooks = {'spying': {}}"
    for setting in (*SHORT, *skipping, hooks):
        command += ["--set", setting]
    group = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": launches.port(),
    }
    # Started from the folder that holds those modules: presets are found from anywhere.
    result = launches.execute(
        command, run_dir=run_dir, cwd=site.folder, environment={**site.environment, **group}
    ).succeeded()
    assert len(result.curve("train/loss")) == STEPS
    for step in range(2, STEPS):  # around the first and the last step validation runs, forward only
        found = json.loads((run_dir / f"spy-{step}.json").read_text())
        assert found["events"] == ["forward", "backward", "step"] * 4
        assert found["whose"] == ["user"] * 3


# ---- the compiler, the built op, and ranks --------------------------------------------------------
def test_each_installation_builds_the_op_in_a_folder_of_its_own(monkeypatch):
    """In one folder, two environments with different include paths would build it again in turn."""
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    here = extensions_directory()
    assert extensions_directory() == here
    monkeypatch.setattr("torch.__file__", "/elsewhere/torch/__init__.py")
    assert extensions_directory().parent == here.parent
    assert extensions_directory() != here
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/chosen")
    assert extensions_directory() == Path("/chosen")


def load_op(environment, begun, sender):
    """Load the op; send a message before, and create a file once loading has begun."""
    os.environ.update(environment)
    engine.prepare_environment()
    from deepspeed.accelerator import get_accelerator

    builder = type(get_accelerator().create_op_builder("ShareMemCommBuilder"))
    load = builder.load

    def reporting(self, **options):
        begun.touch()
        return load(self, **options)

    builder.load = reporting
    sender.send("loading the op")
    engine._load_shared_memory_op()


@pytest.fixture
def built(launches, tmp_path):
    """A copy of the folder with the built op, for `TORCH_EXTENSIONS_DIR`."""
    launches.shared(*SHARDED, ranks=2).succeeded()  # builds it
    return shutil.copytree(extensions_directory(), tmp_path / "extensions")


@launcher
def test_a_build_that_was_killed_does_not_block_a_start(launches, built, monkeypatch):
    """A killed process leaves torch's own lock, which is a file."""
    (op,) = built.rglob("deepspeed_shm_comm.so")
    lock = op.with_name("lock")
    lock.touch()
    port = launches.port()
    monkeypatch.setattr(launches, "port", lambda: port)
    settings = (*SHORT, "run.total_tokens = 512")
    launches.run(*settings, ranks=2, environment={"TORCH_EXTENSIONS_DIR": str(built)}).succeeded()
    assert not lock.exists()
    # DeepSpeed's buffers of 66 MiB, which it names by the port and never removes.
    assert list(Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_*_{port}_*")) == []


@launcher
def test_one_rank_needs_no_compiler_and_builds_nothing(launches, tmp_path):
    (tmp_path / "bin").mkdir()
    environment = {"PATH": str(tmp_path / "bin"), "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")}
    settings = (*SHORT, "run.total_tokens = 512")
    result = launches.run(*settings, environment=environment).succeeded()
    assert "building" not in result.text
    assert not (tmp_path / "extensions").exists()


@launcher
def test_a_start_waits_for_a_build_in_another_process(launches, built, tmp_path):
    environment = {**launches.environment, "TORCH_EXTENSIONS_DIR": str(built)}
    begun, (receiver, sender) = tmp_path / "begun", CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=load_op, args=(environment, begun, sender))
    with FileLock(built / "mcframe.lock") as lock:
        process.start()
        sender.close()
        try:
            assert receiver.recv() == "loading the op"
            process.join(1)
            assert process.is_alive()
            assert not begun.exists()
            lock.release()
            process.join(120)
            assert process.exitcode == 0
            assert begun.exists()
        finally:
            process.kill()


@launcher
def test_a_missing_compiler_is_a_clear_message(launches, tmp_path):
    (tmp_path / "bin").mkdir()
    environment = {"PATH": str(tmp_path / "bin"), "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")}
    result = launches.run(*SHORT, ranks=2, environment=environment)
    assert result.code == 2, result.output[-6000:]
    assert "DeepSpeed needs a C++ compiler (g++ was not found)" in result.text
    assert "apt-get install g++" in result.text
    assert "Traceback" not in result.output


@launcher
def test_a_batch_that_does_not_divide_among_the_ranks_is_reported_once(launches):
    result = launches.run("run.batch_tokens = 1152", ranks=2)
    assert result.code == 2, result.output[-6000:]
    assert result.errors == 1
    assert "--set 'run.batch_tokens = 1152'" in result.text
    assert "2 ranks" in result.text
    assert "et run.batch_tokens = 1024" in result.text
    assert "Traceback" not in result.output
