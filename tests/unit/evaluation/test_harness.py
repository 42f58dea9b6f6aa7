"""lm-evaluation-harness: a local task against full and compressed contexts, equal to a direct computation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from mcframe.cli.load_run import load_run
from mcframe.errors import UserError
from mcframe.evaluation.harness_callback import HarnessTasks
from mcframe.evaluation.harness_tasks import run_tasks
from mcframe.evaluation.history_arms import HistoryArms
from mcframe.hookspecs import CallbackRun, CallbackStep
from mcframe.lm_eval import main, model_of, register
from mcframe.runtime.gist_encoder import history_shape
from mcframe.runtime.history import History
from mcframe.runtime.session_config import SessionDefaults
from tests.support.written_runs import write_run

lm_eval = pytest.importorskip("lm_eval", reason="the extra lm-eval, which tox installs")
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from mcframe.evaluation.harness_model import HarnessModel  # noqa: E402

TEXT = "The quick brown fox jumps over the lazy dog; every gist of the tree is read again. " * 2
ROWS = [
    {"text": TEXT[:100], "choices": [" and then", " x", "!"], "label": 0},
    {"text": TEXT[7:140], "choices": ["one", "two and three", "four"], "label": 2},
    {"text": "short", "choices": [" a", " b", " c"], "label": 1},
]
BUDGET = 64


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory of a small model of bytes."""
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, ["run.variants = @variants.random_collapse"])
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder with three tasks as YAML and their data as JSON."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "rows.json").write_text(json.dumps(ROWS))
    data = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder}/rows.json}}}}\ntest_split: test\n"
    (folder / "choice.yaml").write_text(
        f"task: local_choice\n{data}output_type: multiple_choice\ndoc_to_text: '{{{{text}}}}'\ndoc_to_choice: choices\n"
        "doc_to_target: label\ntarget_delimiter: ''\nmetric_list: [{metric: acc}]\n"
    )
    (folder / "perplexity.yaml").write_text(
        f"task: local_perplexity\n{data}output_type: loglikelihood_rolling\ndoc_to_text: ''\n"
        "doc_to_target: '{{text}}'\nmetric_list: [{metric: bits_per_byte}]\n"
    )
    (folder / "nll.yaml").write_text(
        f"task: local_choice_nll\n{data}output_type: loglikelihood\ndoc_to_text: '{{{{text}}}}'\n"
        "doc_to_target: '{{choices[0]}}'\ntarget_delimiter: ''\nmetric_list: [{metric: perplexity}]\n"
    )
    return folder


@torch.no_grad()
def direct_full(trained, before, after):
    """Return log-likelihood and greediness of bytes after others, one plain pass of the last T."""
    row = torch.tensor([*before, *after][-trained.model.tree.window - 1 :])[None]
    logits = trained.model(row[:, :-1])[0].double().log_softmax(dim=-1)
    targets = row[0, 1:]
    count = min(len(after), len(targets))
    chosen = logits.gather(1, targets[:, None])[-count:, 0]
    return float(chosen.sum()), bool((logits.argmax(dim=-1) == targets)[-count:].all())


def direct_compressed(trained, before, after):
    """Return the same after a history, by the arms of the evaluation of long contexts."""
    config = SessionDefaults(budget=BUDGET).config(trained.model.tree, trained.model.gpt.positions.bounded)
    shape = history_shape(trained.model, trained.tokenizer.vocab_size)
    arms = HistoryArms(trained.model, trained.run_config.allocator, config, lambda: History.create(shape), lambda t: [])
    arm = "refocus" if trained.model.lensnet is not None else "gists"
    found = arms.score(torch.tensor([*before, *after]), len(before), None, [arm])[arm]
    return -float(found.nll.double().sum()), bool(found.right.all())


def opened(run, budget, batch_size=8):
    """Return the run, and its model for the harness."""
    trained = load_run(run)
    bounded = trained.model.gpt.positions.bounded
    config = None if budget is None else SessionDefaults(budget=budget).config(trained.model.tree, bounded)
    parts = trained.model, trained.tokenizer, trained.run_config.allocator
    return HarnessModel(*parts, config, batch_size), trained


DIRECT = {None: direct_full, BUDGET: direct_compressed}


@pytest.mark.parametrize("budget", DIRECT)
def test_a_local_task_equals_a_direct_computation(budget, run, tasks):
    model, trained = opened(run, budget, 4)
    found = run_tasks(model, ["local_choice", "local_perplexity"], include=tasks)
    right = 0
    for row in ROWS:
        scores = [DIRECT[budget](trained, row["text"].encode(), each.encode())[0] for each in row["choices"]]
        right += scores.index(max(scores)) == row["label"]
    assert found["local_choice/acc"] == pytest.approx(right / len(ROWS))
    texts = [row["text"].encode() for row in ROWS]
    step = 10**9 if budget is None else model._config.refocus_every
    nats = -sum(
        DIRECT[budget](trained, [256, *text[:at]], text[at : at + step])[0]
        for text in texts
        for at in range(0, len(text), step)
    )
    if budget is None:  # a text longer than T is read in windows, of which the last overlaps
        nats = -sum(rolling(trained, text) for text in texts)
    assert found["local_perplexity/bits_per_byte"] == pytest.approx(nats / math.log(2) / sum(map(len, texts)), rel=1e-4)


def rolling(trained, text):
    """Return the log-likelihood of a text: windows of T targets, the last with as much before as fits."""
    window, total, stream = trained.model.tree.window, 0.0, [256, *text]
    for first in range(0, len(text), window):
        last = min(first + window, len(text))
        before = stream[max(0, last - window) : first + 1]
        total += direct_full(trained, before, stream[first + 1 : last + 1])[0]
    return total


@pytest.mark.parametrize("budget", DIRECT)
def test_requests_of_any_length_in_batches(budget, run):
    model, trained = opened(run, budget, 3)
    pairs = [
        (TEXT[:at], after) for at in (1, 30, 90, 150) for after in ("a", "of the tree", "a context that is much longer")
    ]
    pairs.append(("", "from the start"))
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    found = model.loglikelihood(requests, disable_tqdm=True)
    for (before, after), (score, greedy) in zip(pairs, found, strict=True):
        history = before.encode() or [256]
        if before.endswith(" "):
            history, after = before.rstrip().encode(), before[len(before.rstrip()) :] + after
        expected = DIRECT[budget](trained, history, after.encode())
        assert score == pytest.approx(expected[0], abs=1e-3)
        assert greedy is expected[1]


@pytest.mark.parametrize("budget", DIRECT)
def test_text_is_generated_up_to_a_stop(budget, run):
    model, trained = opened(run, budget)

    def generate(**options):
        return model.generate_until([Instance("generate_until", {}, (TEXT[:60], options), 0)])[0]

    text = generate(max_gen_toks=12)
    if budget is None:
        tokens = list(TEXT[:60].encode())
        with torch.no_grad():
            for _ in range(12):
                tokens.append(int(trained.model.next_logits(torch.tensor([tokens]))[0, :257].argmax()))
        assert trained.tokenizer.decode(tokens[60:]).startswith(text.rstrip("\ufffd"))
    assert len(text) > 1
    assert generate(max_gen_toks=12, until=[text[1]]) == text[:1].replace(text[1], "")


def test_the_harness_builds_the_model_by_its_name(run, tasks, monkeypatch, capsys):
    register()
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    arguments = {"tasks": ["local_choice"], "task_manager": manager, "bootstrap_iters": 0, "device": "cuda"}
    found = lm_eval.simple_evaluate(model="mcframe", model_args=f"run={run},budget={BUDGET}", **arguments)
    harness, _ = opened(run, BUDGET)
    expected = run_tasks(harness, ["local_choice"], include=tasks)
    assert found["results"]["local_choice"]["acc,none"] == pytest.approx(expected["local_choice/acc"])
    for wrong, message in ((f"run={run},depth=3", "got depth"), ("budget=300", r"expected run=RUN")):
        with pytest.raises(UserError, match=message):
            lm_eval.simple_evaluate(model="mcframe", model_args=wrong, **arguments)
    monkeypatch.setattr("sys.argv", ["lm_eval", "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "lm_eval" in capsys.readouterr().out.lower().replace("-", "_")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"budget": "many"}, "budget: expected a number from 1"), ({"budget": 3}, r"session\.budget: 2 entries are left")],
)
def test_wrong_arguments_are_refused(arguments, message, run):
    with pytest.raises(UserError, match=message):
        model_of(str(run), **arguments)


# ---- the callback --------------------------------------------------------------------------------
def test_the_callback_reads_after_each_interval_and_leaves_the_model_as_it_was(run, tasks, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")  # of which the harness would return nothing
    trained = load_run(run)
    model, state = trained.model.train(), torch.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    callback = HarnessTasks(tasks=["local_choice"], every=1000, include=str(tasks), limit=2)
    callback.on_start(CallbackRun(model, {}, {}, Path(), 0, 1, 4096, trained.tokenizer, trained.run_config.allocator))
    read = [callback.after_step(CallbackStep(step, 400 * (step + 1), {})) for step in range(3)]
    assert [each is not None for each in read] == [True, False, True]
    assert read[0].keys() == {"local_choice/acc"}
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    right = 0
    model.eval()
    for row in ROWS[:2]:
        scores = [direct_full(trained, row["text"].encode(), each.encode())[0] for each in row["choices"]]
        right += scores.index(max(scores)) == row["label"]
    assert float(read[0]["local_choice/acc"]) == pytest.approx(right / 2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    resumed = HarnessTasks(tasks=["local_choice"], every=1000, include=str(tasks))
    resumed.load_state_dict(callback.state_dict())
    resumed.on_start(CallbackRun(model, {}, {}, Path(), 0, 1, 4096, trained.tokenizer, trained.run_config.allocator))
    assert resumed.after_step(CallbackStep(5, 1900, {})) is None


def test_the_callback_reads_as_sessions_of_the_run_do(run, tasks):
    trained, found = load_run(run), {}
    for drops in (False, True):
        callback = HarnessTasks(tasks=["local_choice_nll"], include=str(tasks), budget=BUDGET)
        config = {"session.drop_gists": drops, "session.sink": 0}
        owner = CallbackRun(
            trained.model, {}, config, Path(), 0, 1, 4096, trained.tokenizer, trained.run_config.allocator
        )
        callback.on_start(owner)
        found[drops] = math.log(callback.after_step(CallbackStep(0, 4096, {}))["local_choice_nll/perplexity"])
        bounded = trained.model.gpt.positions.bounded
        session = SessionDefaults(budget=BUDGET, drop_gists=drops, sink=0).config(trained.model.tree, bounded)
        harness = HarnessModel(trained.model, trained.tokenizer, trained.run_config.allocator, session)
        expected = run_tasks(harness, ["local_choice_nll"], include=tasks)["local_choice_nll/perplexity"]
        assert found[drops] == pytest.approx(math.log(expected), abs=1e-5)
    assert abs(found[True] - found[False]) > 1e-4


def test_unknown_tasks_and_a_missing_package_are_named(run, tasks, monkeypatch):
    with pytest.raises(UserError, match="got no_such_task") as caught:
        run_tasks(opened(run, None)[0], ["no_such_task"], include=tasks)
    assert "lm_eval ls tasks" in caught.value.remedy
    with pytest.raises(UserError, match="expected a list of names, got 'arc'"):
        HarnessTasks(tasks="arc")
    register()
    assert "mcframe" in lm_eval.api.registry.MODEL_REGISTRY
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(UserError, match="expected the package lm_eval") as caught:
        HarnessTasks(tasks=["arc"])
    assert "pip install 'mcframe[lm-eval]'" in caught.value.remedy
