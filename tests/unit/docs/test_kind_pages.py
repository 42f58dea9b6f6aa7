"""docs/plugins/KIND.md: each page's example, installed as a package, selected by the page's gin lines, and used."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mcframe.config.run_config import load_run_config
from mcframe.context.counter_rng import variant_seeds
from mcframe.context.focus_ops import is_valid, lengths
from mcframe.data.packing import separated
from mcframe.hookspecs import INTERFACES
from mcframe.registry.discovery import PluginOptions, discover
from mcframe.testing.checking import check_plugin
from mcframe.training.build import build_components
from mcframe.training.evaluation import eval_model
from mcframe.training.param_groups import optimizer_groups, param_groups
from mcframe.training.train_step import StepBatch

FOLDER = Path(__file__).parents[3] / "docs" / "plugins"


@pytest.fixture
def chosen(tmp_path, monkeypatch, new_site):
    """Return a function that builds the components of a run with the example of a page."""
    monkeypatch.setenv("MCFRAME_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.chdir(tmp_path)

    def choose(kind):
        page = (FOLDER / f"{kind}.md").read_text("utf-8")
        example = page.split("## Example")[1]
        code, gin = (
            re.search(rf"^```{language}\n(.*?)^```$", example, re.M | re.S)[1] for language in ("python", "gin")
        )
        new_site(tmp_path / "site").install("mcframe_of_the_page", code)
        importlib.invalidate_caches()
        (tmp_path / "mine.gin").write_text(gin, "utf-8")
        loaded = load_run_config([tmp_path / "mine.gin"], ["validation.windows = 4"])
        offered = loaded.registry.implementations[kind].items()
        names = [name for name, entry in offered if entry.distribution != "mcframe"]
        assert len(names) == 1
        assert f"@{kind}.{names[0]}" in gin
        return build_components(loaded.run_config)

    yield choose
    sys.modules.pop("mcframe_of_the_page", None)


def step(components):
    """A training step of two sequences: the loss is finite and reaches every parameter."""
    model, tree, run_config = components.model, components.tree, components.run_config
    torch.manual_seed(0)
    for block in model.gpt.blocks:  # they start at zero
        torch.nn.init.normal_(block.attention.out.weight, std=0.3)
        torch.nn.init.normal_(block.down.weight, std=0.3)
    tokens = torch.randint(0, model.gpt.vocab_size, (2, tree.window + 1))
    seeds = variant_seeds(0, torch.arange(2), model.strategy.count)
    loss, metrics = components.step(StepBatch(tokens, seeds, run_config.variant_length(0)))
    assert torch.isfinite(loss)
    loss.backward()
    return model, metrics, tokens


def learns(part):
    parameters = dict(part.named_parameters())
    assert all(each.grad is not None and each.grad.count_nonzero() for each in parameters.values()), part
    return len(parameters)


def test_base(chosen):
    components = chosen("base")
    model, tree = components.model, components.tree
    assert (type(model.gpt).__name__, model.gpt.width) == ("Shallow", 32)
    tokens = torch.randint(0, model.gpt.vocab_size, (2, tree.window + 1))
    seeds = variant_seeds(0, torch.arange(2), model.strategy.count)
    loss, _ = components.step(StepBatch(tokens, seeds, components.run_config.variant_length(0)))
    loss.backward()
    assert torch.isfinite(loss)
    assert learns(model.gpt) == 3
    assert learns(model.gistnet)


def test_gistnet(chosen):
    model, metrics, _ = step(chosen("gistnet"))
    assert learns(model.gistnet) == 2
    assert "mc/gist_entry_delta/2" in metrics.means


def test_lensnet(chosen):
    model, metrics, _ = step(chosen("lensnet"))
    assert learns(model.lensnet) == 2
    assert "mc/lens_loss" in metrics.means


def test_positions(chosen):
    model, *_ = step(chosen("positions"))
    assert type(model.gpt.positions).__name__ == "Counted"
    assert model.gpt.positions.base == 500.0


def test_loss(chosen):
    components = chosen("loss")
    _, metrics, _ = step(components)
    assert components.step.losses["near_mean"].weight == 0.05
    mean, cosine = (metrics.means[f"loss/near_mean{end}"] for end in ("", "/cosine"))
    assert float(mean[0] / mean[1]) == pytest.approx(1 - float(cosine[0] / cosine[1]), abs=1e-5)
    assert "loss/z_loss/log_z" in metrics.means


def test_variants(chosen):
    components = chosen("variants")
    model, _, tokens = step(components)
    length, seeds = components.run_config.variant_length(0), variant_seeds(1, torch.arange(2), 3)
    focus = model.propose(tokens[:, :-1], seeds, length)
    assert focus.shape == (6, components.tree.blocks)
    assert (lengths(focus, components.tree) == length).all()
    assert len({tuple(row) for row in focus.tolist()}) == 6


def test_allocator(chosen):
    components = chosen("allocator")
    model, _, tokens = step(components)
    tree = components.tree
    with torch.no_grad():
        for budget in (tree.window, 113, tree.minimum_length):
            focus, _ = model.refocus(tokens[:, :-1], components.allocator, budget, torch.arange(2))
            assert is_valid(focus, tree).all()
            assert (lengths(focus, tree) == tree.reachable(budget)[0]).all()


def test_text_and_tokenizer(chosen):
    text = chosen("text").text
    first, again, other = (list(text.documents(epoch)) for epoch in (0, 0, 1))
    assert first == again != other
    assert len(first) == 1000
    assert len(first[0].splitlines()) == 40
    assert all(eval(line.replace("=", "==")) for line in first[0].splitlines())


def test_tokenizer(chosen):
    tokenizer = chosen("tokenizer").tokenizer
    (ids,) = separated(tokenizer, ["Über"])
    assert tokenizer.decode(ids.tolist()) == "Über"
    assert int(tokenizer.byte_lengths()[torch.from_numpy(ids.astype("int64"))].sum()) == 5


def test_task(chosen):
    """The sequences are tested in test_task_example."""
    components = chosen("task")
    assert components.task.generate(torch.arange(3)).tokens.shape == (3, components.tree.window + 1)


def test_evaluation(chosen):
    components = chosen("evaluation")
    model = eval_model(components.run_config, components.tokenizer, components.model, torch.device("cpu"))
    (evaluation,) = components.evaluations
    result = evaluation.run(model)
    assert evaluation.windows == 4
    assert result.metrics["eval/plain/nll"] == pytest.approx(5.55, abs=0.3)  # of 257 ids, before training


def test_logger(chosen):
    """The example itself runs in tests/unit/metrics."""
    assert len(chosen("logger").run_config.loggers) == 1


def test_callback(chosen):
    (callback,) = chosen("callback").callbacks
    callback.on_start(SimpleNamespace(model=torch.nn.Linear(1, 1, bias=False).requires_grad_()))
    callback.weights[0].data.fill_(3.0)
    assert callback.after_step(None) == {"norm": torch.tensor(6.0)}


def test_optimizer(chosen):
    components = chosen("optimizer")
    groups = param_groups(components.step, components.optimizer, components.run_config.optimizer_config)
    assert {(group.rule.name, group.lr) for group in groups} == {("Lion", 0.0005)}
    built = components.optimizer.build(optimizer_groups(components.step, groups), False)
    assert built.param_groups[0]["betas"] == (0.95, 0.98)
    weight = components.model.gpt.lm_head.weight
    before = weight.detach().clone()
    for each in components.step.parameters():
        each.grad = torch.ones_like(each)
    built.step()
    torch.testing.assert_close(weight.detach(), before - 0.0005)


def test_schedule(chosen):
    schedule = chosen("schedule").schedule
    assert [schedule.factor(step, 8) for step in (0, 3, 4, 6)] == pytest.approx([0.25, 1.0, 1.0, 0.5])


@pytest.mark.parametrize("page", sorted(path.stem for path in FOLDER.glob("*.md") if "mcframe_api" in path.read_text()))
def test_every_example_conforms(page, tmp_path):
    """Complete examples pass the conformance kit, except requirements that start processes."""
    text = (FOLDER / f"{page}.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    examples = [code for code in blocks if "mcframe_api" in code]
    assert examples
    for number, code in enumerate(examples):
        file = tmp_path / f"example_{number}.py"
        file.write_text(code, "utf-8")
        registry = discover(PluginOptions((str(file),)))
        names = [
            entry for kind in registry.implementations.values() for entry in kind.values() if not entry.distribution
        ]
        assert names
        for entry in names:
            results = check_plugin(f"{entry.kind}.{entry.name}", registry=registry)
            assert [f"{each.requirement}: {each.message}" for each in results if each.outcome != "passed"] == []


def test_every_complete_example_is_here():
    """An example that registers something is complete: it states its API."""
    for page in FOLDER.glob("*.md"):
        for code in re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S):
            assert "import" not in code or "def register_plugins" not in code or "mcframe_api" in code, page.name


def test_every_kind_is_here():
    named = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert set(INTERFACES) - named - {"text"} == set()
