"""Every way in which a plug-in fails ends in one message that names it, its package, file and line, and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcframe.cli.user_errors import report_user_errors
from mcframe.errors import UserError
from mcframe.registry.attribution import _owner
from mcframe.registry.plugins import Plugin
from tests.support.error_cases import CASES
from tests.support.errors_page import PAGE, installed, message_of, one_step, output_of, section

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
    "abstract": ["mylab.py", "gistnet.mine of plug-in 'it' of mylab 1.0: missing method forward of GistNet"],
    "kind": [
        "mylab.py", "gistnet.mine of plug-in 'it' of mylab 1.0: expected a GistNet from the factory, got a value of "
        "type Mine, which is a LensNet", "Register it as lensnet, not as gistnet.",
    ],
    "nothing": ["from the factory, got a value of type function", "Derive it from mcframe.hookspecs."],
    "signature": [
        "mylab.py:14", "forward(children) cannot be called as the framework does, forward(children, lod)",
        "def forward(self, children, lod)",
    ],
    "attribute": ["variants.mine of plug-in 'it'", "missing attribute 'count' of VariantStrategy"],
    "forward": [
        "mylab.py:15", "gistnet.mine of plug-in 'it' of mylab 1.0 failed in forward: RuntimeError: shape '[-1, 7]'",
        "return self.head(children[:, :, -self.slots :].view(-1, 7))",
    ],
    "shape": [
        "mylab.py:14", "gistnet.mine of plug-in 'it' of mylab 1.0: forward: expected gists [B, nodes, G, D] of "
        "LOD1, here [2, 32, 1, 64] float32, got [2, 32, 64] float32",
    ],
    "dtype": ["here [2, 32, 1, 64] float32, got [2, 32, 1, 64] float64"],
    "scores": ["lensnet.mine of plug-in 'it'", "forward: expected scores in [-1, 1], got scores from"],
    "invalid focus": ["variants.mine", "propose: expected a valid focus, got one with nodes"],
    "length": ["variants.mine", "propose: expected focuses of 113 entries, got 125"],
    "loss": ["loss.mine", "forward: expected a LossTerm, got a value of type Tensor"],
    "positions": ["positions.mine", "forward: expected cosine [R, 1 or heads", "got [1, 1, 128, 16] float32"],
    "hook": ["mylab.py:10", "plug-in 'it' of mylab 1.0 failed in its hook step_finished: OSError: the pager is down"],
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_failing_plugin_ends_in_the_message_of_the_page(case, tmp_path):
    with installed(case, tmp_path):
        code, output = output_of(case)
    assert code == 2, output
    assert output.count("mcframe stopped") == 1
    assert "Traceback" not in output
    message = message_of(output, tmp_path)
    for part in EXPECTED[case]:
        assert part in message
    assert section(case, message) in PAGE.read_text("utf-8"), "run python -m tests.support.errors_page"


def test_the_traceback_is_there_on_request(tmp_path):
    with installed("forward", tmp_path), pytest.raises(UserError, match="failed in forward") as caught:
        report_user_errors(lambda: one_step(CASES["forward"].bindings), traceback=True)
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
