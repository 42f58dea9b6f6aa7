"""Files of a checkpoint's state: values come back with their types, pieces come together, nothing else is written."""

import itertools
import math
import random
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcframe.errors import UserError
from mcframe.training.random_states import random_states, restore_random_states
from mcframe.training.state_files import decode, encode, read, write

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
KEYS = st.text() | st.integers() | st.tuples(st.integers(), st.text())
VALUES = st.recursive(
    SCALARS,
    lambda each: (
        st.lists(each) | st.lists(each).map(tuple) | st.dictionaries(KEYS, each) | st.frozensets(st.integers()).map(set)
    ),
    max_leaves=8,
)


def restored(value, folder, name="own"):
    tensors = {}
    encoded = encode(value, name, tensors)
    write(folder, 0, tensors, {"world_size": 1, name: encoded})
    return read(folder).value(0, name)


def same(one, other):
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@given(value=VALUES)
def test_values_come_back_with_their_types(value):
    tensors = {}
    assert same(decode(encode(value, "x", tensors), tensors.__getitem__), value)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "int64", "int8", "bool", "uint32", "complex64"])
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (2, 3)])
def test_tensors_come_back(tmp_path, dtype, shape):
    tensor = torch.ones(shape).to(getattr(torch, dtype))
    other = tensor.transpose(0, -1) if tensor.dim() else tensor  # not contiguous
    found = restored({"a/b": other, "a": {"b": [tensor, tensor]}}, tmp_path)
    assert all(torch.equal(each, tensor) and each.dtype == tensor.dtype for each in found["a"]["b"])
    assert torch.equal(found["a/b"], other)


def test_arrays_and_numbers_of_numpy_come_back(tmp_path):
    value = {"a": np.arange(3, dtype=np.uint32), "b": np.float32(0.1), "c": np.array(2.0)}
    found = restored(value, tmp_path)
    assert all(type(found[name]) is type(value[name]) and found[name].dtype == value[name].dtype for name in value)
    assert (found["a"] == value["a"]).all()
    assert (found["b"], found["c"]) == (value["b"], value["c"])


def test_values_that_are_not_finite_come_back(tmp_path):
    found = restored([math.inf, math.nan, torch.tensor(-math.inf), -0.0], tmp_path)
    assert (found[0], math.isnan(found[1]), float(found[2])) == (math.inf, True, -math.inf)
    assert math.copysign(1, found[3]) == -1


def test_random_states_come_back(tmp_path):
    states = random_states()
    expected = random.random(), np.random.rand(), float(torch.rand(()))
    restore_random_states(restored(states, tmp_path))
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == expected


@pytest.mark.parametrize(
    "value", [{"f": print}, [object()], OrderedDict(a=defaultdict(list)), np.array([object()]), {1: math.sin}]
)
def test_other_objects_are_refused_by_name(value):
    with pytest.raises(TypeError, match=r"callbacks/mine.*: expected numbers, text, tensors"):
        encode(value, "callbacks/mine", {})


@given(cuts=st.sets(st.integers(1, 9)), start=st.integers(0, 10), length=st.integers(0, 10))
def test_a_part_of_a_tensor_in_pieces_of_several_files(tmp_path_factory, cuts, start, length):
    folder, full = tmp_path_factory.mktemp("state"), torch.arange(10.0)
    edges = [0, *sorted(cuts), 10]
    for rank, (low, high) in enumerate(itertools.pairwise(edges)):
        facts = {"world_size": len(edges) - 1, "pieces": {"w@": ("w", low)}}
        write(folder, rank, {"w@": full[low:high]}, facts)
    state = read(folder)
    if start + length <= 10:
        assert torch.equal(state.part("w", start, length), full[start : start + length])
    else:
        with pytest.raises(ValueError, match="are in no file"):
            state.part("w", start, length)


def test_checkpoints_of_other_formats_are_refused(tmp_path):
    write(tmp_path, 0, {}, {"format": 7, "world_size": 1})
    with pytest.raises(UserError, match="expected files of format 1, got 7"):
        read(tmp_path)
    (tmp_path / "rank-0.pt").touch()
    with pytest.raises(UserError, match=r"written by mcframe 0\.1") as caught:
        read(tmp_path)
    assert "Finish this run with mcframe 0.1" in caught.value.remedy
