"""State files: whatever is written comes back as it was, or is refused before writing."""

import math
import os
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pruninglab as lab
from pruninglab import storage
from pruninglab.train import checkpoints

KEYS = st.one_of(st.text(max_size=4), st.integers(-3, 3), st.booleans(), st.none(), st.sampled_from(["a/b", "/", "1"]))
KEYS = st.one_of(KEYS, st.tuples(KEYS, KEYS), st.floats(-2, 2))
TENSORS = st.builds(
    lambda kind, shape: torch.arange(math.prod(shape)).reshape(shape).to(kind),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int8, torch.bool]),
    st.lists(st.integers(0, 3), max_size=3),
)
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5), TENSORS)
STATES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple), st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=8,
)


def same(a: Any, b: Any) -> bool:
    """Equal in value and in type, all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        pairs = list(zip(a.items(), b.items(), strict=False))
        return len(a) == len(b) and all(same(k, m) and same(v, w) for (k, v), (m, w) in pairs)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(v, w) for v, w in zip(a, b, strict=True))
    return a == b


@given(st.dictionaries(KEYS, STATES, max_size=4))
def test_state_comes_back_as_it_was(tmp_path_factory, state):
    path = tmp_path_factory.getbasetemp() / "state"
    storage.save_state(path, state)
    assert same(storage.load_state(path), state)


@pytest.mark.parametrize(
    "state",
    [
        {"a/b": torch.ones(1), "a": {"b": torch.zeros(1)}},
        {1: torch.ones(1), "1": torch.zeros(1)},
        {True: torch.ones(1), "True": torch.zeros(1), "1": torch.ones(2)},
        {("a", "b"): torch.ones(1), "('a', 'b')": torch.zeros(1), "a": {"b": torch.ones(3)}},
        {"items": {"items": [["tensor", "list"]]}, "list": {"tensor": "x"}, "tensor": {"masks": True}},
        {"x": (1, (2, [3, ()])), "y": [], "z": {}, "masks": lab.Masks(a=torch.ones(2, dtype=torch.bool))},
        {"c": torch.ones(2, dtype=torch.complex64), "t": torch.ones(4, 3).T, "e": torch.ones(3, 1).expand(3, 4)},
        {"inf": -math.inf, "surrogate": "\ud800", "large": 10**30},
    ],
    ids=str,
)
def test_states_that_look_alike_are_told_apart(tmp_path, state):
    storage.save_state(tmp_path / "s", state)
    assert same(storage.load_state(tmp_path / "s"), state)


@pytest.mark.parametrize(
    "state",
    [{"x": {1}}, {frozenset({1}): 1}, {"x": 1 + 2j}, {b"x": 1}, {"x": torch.ones(3).to_sparse()},
     {"x": torch.empty(2, device="meta")}, {(1, b"y"): 2}],
    ids=str,
)  # fmt: skip
def test_what_a_state_file_cannot_hold_is_refused_before_anything_is_written(tmp_path, state):
    storage.save_state(tmp_path / "s", {"old": 1})
    with pytest.raises(lab.ConfigError, match="state file cannot"):
        storage.save_state(tmp_path / "s", state)
    assert storage.load_state(tmp_path / "s") == {"old": 1}
    assert os.listdir(tmp_path) == ["s"]


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64, torch.float16], ids=str)
def test_zeros_and_masks_take_little_room_and_come_back_to_the_bit(tmp_path, kind):
    draw = torch.Generator().manual_seed(0)
    dense = torch.randn(40, 5, 50, generator=draw).to(kind)
    mask = torch.rand(dense.shape, generator=draw) < 0.1
    odd = torch.where(mask, dense, 0)
    odd[0, 0, :4] = torch.tensor([-0.0, math.inf, math.nan, 1e-45], dtype=kind)
    state = {"mask": mask, "pruned": odd, "turned": odd.mT, "none": torch.zeros(2000).to(kind), "empty": mask[:0]}
    storage.save_state(tmp_path / "s", state)
    again = storage.load_state(tmp_path / "s")
    for name, tensor in state.items():
        assert again[name].dtype == tensor.dtype
        assert again[name].shape == tensor.shape
        assert bits(again[name]) == bits(tensor)
    assert (tmp_path / "s").stat().st_size < 0.45 * 2 * dense.numel() * dense.element_size()


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def test_a_forged_structure_is_a_data_error(tmp_path):
    path = tmp_path / "s"
    forged = ['{"bits": ["b", [80000000000]]}', '{"bits": ["b", [-8]]}', '{"bits": ["b", [1.0]]}', '{"bits": "b"}']
    forged += ['{"sparse": ["b", {"bits": ["b", [16]]}]}', '{"sparse": ["b", {"tensor": "b"}]}', "[" * 100_000]
    forged += ["[]", "3", '{"items": 3}', '{"items": [[1]]}', '{"tensor": "none"}', '{"items": [[["a"], 1]]}']
    for structure in forged:
        storage.files.write_state(path, {"b": torch.ones(2, dtype=torch.uint8)}, structure)
        with pytest.raises(lab.DataError, match="s cannot be read as a state file"):
            storage.load_state(path)
    with pytest.raises(lab.DataError, match="cannot be read"):
        storage.load_state(tmp_path / "nothing")
    with pytest.raises(lab.DataError, match="cannot be read"):
        storage.load_state(tmp_path)


def test_parameters_that_share_storage_can_be_counted_and_written(blobs, tmp_path):
    first, second = nn.Linear(10, 10), nn.Linear(10, 10)
    model = nn.Sequential(first, second, nn.Linear(10, 4))
    second.weight = nn.Parameter(first.weight.data.T)  # a view of the same memory
    second.bias = nn.Parameter(first.bias.data)
    model.register_buffer("part", first.weight.data[3:5])
    sizes = storage.sizes(model)
    assert sizes["parameters"] == 2 * 110 + 44
    assert storage.save(model, tmp_path / "m")["sparse_bytes"] == sizes["sparse_bytes"]
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in storage.load(tmp_path / "m").items())
    run = lab.fit(model, blobs, epochs=1, inplace=True, progress=False, record=tmp_path / "r.json")
    assert lab.Result.read(tmp_path / "r.json").size["parameters"] == run.result.size["parameters"] == 264


def test_compressed_sizes_are_computed_when_asked_for(monkeypatch):
    model = nn.Linear(100, 10)
    assert {"gzip_bytes", "bzip2_bytes"} <= storage.sizes(model, compressed=True).keys()
    for library in ("gzip", "bz2"):
        monkeypatch.setattr(f"{library}.compress", lambda *_, **__: pytest.fail("it was compressed"))
    assert not {"gzip_bytes", "bzip2_bytes"} & storage.sizes(model).keys()


@pytest.mark.parametrize("wrong", [3, "model", [torch.ones(2)], None])
def test_what_is_no_model_is_refused_in_words(tmp_path, wrong):
    for call in (storage.sizes, storage.layer_sizes, storage.index_sizes, lambda m: storage.save(m, tmp_path / "x")):
        with pytest.raises(lab.ConfigError, match="a run or a dict of names to Tensors"):
            call(wrong)
    with pytest.raises(lab.ConfigError, match="masks"):
        storage.sizes(nn.Linear(3, 2), masks={"weight": 0.5})  # pyright: ignore[reportArgumentType]


def test_order_of_keys_and_kinds_of_dicts_survive(tmp_path):
    storage.save_state(tmp_path / "s", OrderedDict(b=1, a=2))
    assert list(storage.load_state(tmp_path / "s")) == ["b", "a"]


@dataclass
class Enough(lab.Method):
    """Ends a run after its first epoch."""

    def on_epoch(self, run: lab.Run) -> None:
        run.stop("enough is known")


def test_a_run_that_was_stopped_is_read_back_as_that(tmp_path):
    y = torch.arange(8) % 2
    net, data = nn.Linear(1, 2), lab.wrap((y[:, None].float(), y), (y[:, None].float(), y))
    for _ in range(2):
        run = lab.fit(net, data, Enough(), epochs=3, checkpoint=tmp_path / "kept", progress=False)
        assert (run.epoch, run.status, run.reason) == (1, "stopped", "enough is known")


@pytest.mark.parametrize("same_masks", [True, False])
def test_the_best_state_keeps_its_own_masks(same_masks):
    """They are written once where they are those of the run."""
    masks = lab.Masks({"weight": torch.tensor([True, False])})
    now = masks if same_masks else ~masks
    packed = checkpoints._packed(lab.Snapshot({"weight": torch.ones(2)}, {}, masks), now)
    assert (packed["masks"] is None) == same_masks
    assert lab.Snapshot(**checkpoints._unpacked(packed, now)).masks.fingerprint == masks.fingerprint


def test_differences_of_settings_are_said_leaf_by_leaf():
    stored = {"final": {"conv*": 0.5, "*": 0.9}, "steps": [1, 2], "kept": None}
    order = ["final was in the order conv*, * there and is *, conv* now"]
    assert checkpoints._differences(stored, stored) == []
    assert checkpoints._differences(stored, stored | {"final": {"*": 0.9, "conv*": 0.5}}) == order
    changed = {"final": {"*": 0.8, "conv*": 0.5}, "steps": [1, 3], "kept": [1]}
    assert checkpoints._differences(stored, changed) == [
        "final.* was 0.9 there and is 0.8 now",
        "kept was None there and is [1] now",
        "steps[1] was 2 there and is 3 now",
    ]
