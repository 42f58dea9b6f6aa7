"""The check that no call executes code from data."""

import pytest

from tests.lint.data_code import calls, problems


def test_no_call_executes_code_from_data():
    assert problems() == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("torch.load(f)", 1),
        ("torch.load(f, weights_only=False)", 1),
        ("torch.load(f, weights_only=flag)", 1),
        ("torch.load(f, weights_only=True)", 0),
        ("np.load(f)", 0),
        ("np.load(f, allow_pickle=True)", 1),
        ("pickle.loads(b)", 1),
        ("pickle.dumps(b)", 0),
        ("from pickle import loads", 1),
        ("import pickle as p", 1),
        ("yaml.load(f, Loader=yaml.Loader)", 1),
        ("yaml.safe_load(f)", 0),
        ("exec(text)", 1),
        ("eval(text)", 1),
        ("model.eval()", 0),
        ("re.compile(text)", 0),
        ("ast.literal_eval(text)", 0),
        ("importlib.import_module(name)", 1),
        ("subprocess.run(text, shell=True)", 1),
        ("datasets.load_dataset(name, trust_remote_code=True)", 1),
        ("engine.wrapped.load_checkpoint(folder)", 1),
    ],
)
def test_calls_that_are_found(source, count):
    assert len(list(calls(source))) == count
