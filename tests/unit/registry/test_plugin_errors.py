"""Every way in which a plug-in fails ends in one message that names it, its package, file and line, and the remedy."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mcframe.cli.app import app
from mcframe.cli.user_errors import report_user_errors
from mcframe.config.run_config import load_run_config
from mcframe.context.counter_rng import variant_seeds
from mcframe.errors import UserError
from mcframe.hookspecs import RunInfo
from mcframe.registry.attribution import _owner
from mcframe.registry.plugins import Plugin
from mcframe.training.build import build_components
from mcframe.training.probe import probe_plugins
from mcframe.training.train_step import StepBatch
from tests.support.error_cases import CASES

PAGE = (Path(__file__).parents[3] / "docs" / "plugins" / "errors.md").read_text("utf-8")

EXPECTED = {
    "import": ["plug-in 'it' of mylab 1.0 could not be loaded", "ModuleNotFoundError", "pip uninstall mylab"],
    "api": ["plug-in 'it' of mylab 1.0", "made for mcframe's plug-in API 7.0, and mcframe", "upgrade mcframe"],
    "taken": ["two plug-ins offer gistnet.mean", "of mcframe 0.1.0", "plug-in 'it' of mylab 1.0", "--no-plugin NAME"],
    "misspelt": ["--set 'gistnet.mine.layer = 2'", "no parameter 'layer' (did you mean layers?)"],
    "type": ["--set", "gistnet.mine.layers = 'two': expected int, got str"],
    "factory": [
        "mylab.py:12", "gistnet.mine of plug-in 'it' of mylab 1.0 could not be built: AttributeError",
        "self.head = nn.Linear(shape.width, shape.depth)", "report it to the authors of mylab", "--traceback",
    ],
    "user error": ["--set 'gistnet.mine.layers = 0'", "gistnet.mine.layers is 0; one is the least", "raise it"],
    "abstract": ["mylab.py", "gistnet.mine of plug-in 'it' of mylab 1.0: it has no forward, which every GistNet has"],
    "kind": [
        "mylab.py", "gistnet.mine of plug-in 'it' of mylab 1.0: it is no GistNet: the factory returned a value of type "
        "Mine, which is a LensNet", "offer it as lensnet, not as gistnet",
    ],
    "nothing": ["it is no GistNet: the factory returned a value of type function", "derive it from mcframe.hookspecs."],
    "signature": [
        "mylab.py:14", "forward(children) cannot be called as the framework does, forward(children, lod)",
        "def forward(self, children, lod)",
    ],
    "attribute": ["variants.mine of plug-in 'it'", "it has no 'count', which every VariantStrategy has"],
    "forward": [
        "mylab.py:15", "gistnet.mine of plug-in 'it' of mylab 1.0 failed in forward: RuntimeError: shape '[-1, 7]'",
        "return self.head(children[:, :, -self.slots :].view(-1, 7))",
    ],
    "shape": [
        "mylab.py:14", "gistnet.mine of plug-in 'it' of mylab 1.0: forward returned [2, 32, 64] float32; asked is "
        "gists [B, nodes, G, D] of LOD1, here [2, 32, 1, 64] float32",
    ],
    "dtype": ["forward returned [2, 32, 1, 64] float64", "here [2, 32, 1, 64] float32"],
    "scores": ["lensnet.mine of plug-in 'it'", "forward returned scores from", "asked are scores in [-1, 1]"],
    "invalid focus": ["variants.mine", "propose returned a focus that is not valid"],
    "length": ["variants.mine", "propose returned focuses of 125 entries where 113 were asked"],
    "loss": ["loss.mine", "forward expected a LossTerm, got a value of type Tensor"],
    "positions": ["positions.mine", "forward returned [1, 1, 128, 16] float32; asked is cosine [R, 1 or heads"],
    "hook": ["mylab.py:10", "plug-in 'it' of mylab 1.0 failed in its hook step_finished: OSError: the pager is down"],
}  # fmt: skip


@pytest.fixture
def mylab(monkeypatch, tmp_path, new_site):
    """Installs a case's package."""
    monkeypatch.setenv("COLUMNS", "5000")
    monkeypatch.syspath_prepend(str(tmp_path / "site-packages"))

    def install(case):
        new_site(tmp_path / "site-packages").install("mylab", CASES[case].source)
        importlib.invalidate_caches()

    yield install
    sys.modules.pop("mylab", None)


def told(output, folder):
    """What stands in the frame, with the folder of packages shortened, and the list of what else there is."""
    lines = [line.strip("│ ") for line in output.splitlines() if line.startswith("│")]
    text = "\n".join(line.rstrip() for line in lines).replace(str(folder), "...")
    return re.sub(r"(of this kind there are: ).*", r"\1...", text)


def one_step(smoke, bindings):
    """A training step of two sequences and its hooks, as `mcframe/run.py` runs them but for the engine."""
    torch.manual_seed(0)
    loaded = load_run_config([smoke], bindings)
    with loaded.explaining():
        components = build_components(loaded.run_config)
        step, tokens = components.step, torch.randint(257, (2, components.tree.window + 1))
        length = loaded.run_config.variant_length(0)
        probe_plugins(step.eval(), step, tokens, length)
        seeds = variant_seeds(0, torch.arange(2), step.model.strategy.count)
        step.train()(StepBatch(tokens, seeds, length))
        loaded.registry.hooks.step_finished(RunInfo(Path("run"), 0, 1, 1024, 1, 2048))
    return 0


def fail(case, smoke, capsys):
    """The exit code and all that is said."""
    settings = [part for binding in CASES[case].bindings for part in ("--set", binding)]
    if CASES[case].at == "check":
        result = CliRunner().invoke(app, ["check", str(smoke), *settings])
        return result.exit_code, result.output
    code = report_user_errors(lambda: one_step(smoke, CASES[case].bindings), traceback=False)
    return code, "".join(capsys.readouterr())


@pytest.mark.parametrize("case", CASES)
def test_a_plugin_that_fails_is_told_in_one_message_as_the_page_shows_it(case, mylab, smoke, capsys, tmp_path):
    mylab(case)
    code, output = fail(case, smoke, capsys)
    assert code == 2, output
    assert output.count("mcframe cannot go on") == 1
    assert "Traceback" not in output
    message = told(output, tmp_path)
    for part in EXPECTED[case]:
        assert part in message
    shown = re.search(rf"^## A plug-in that {CASES[case].title}\n.*?^```\n(.*?)^```$", PAGE, re.M | re.S)
    assert shown, f"docs/plugins/errors.md lacks:\n## A plug-in that {CASES[case].title}\n\n```\n{message}\n```"
    assert shown[1].strip() == message


def test_the_traceback_is_there_for_who_asks(mylab, smoke):
    mylab("forward")
    with pytest.raises(UserError, match="failed in forward") as caught:
        report_user_errors(lambda: one_step(smoke, CASES["forward"].bindings), traceback=True)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_of_two_plugins_in_one_package_it_is_the_one_whose_file_it_is_or_lies_nearest(tmp_path):
    for folder in ("lab", "lab/nets", "lab/views"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    files = {name: str(tmp_path / "lab" / name / "__init__.py") for name in ("nets", "views")}
    plugins = [Plugin(name, file=file) for name, file in files.items()] + [Plugin("sole", file=str(tmp_path / "a.py"))]
    for name, file in files.items():
        for inside in (file, str(Path(file).with_name("parts.py"))):
            for order in (plugins, plugins[::-1]):
                assert _owner(inside, order).name == name
    assert _owner(str(tmp_path / "lab" / "shared.py"), plugins).name == "nets"  # of either: the first
    assert _owner(str(tmp_path / "b.py"), plugins) is None
