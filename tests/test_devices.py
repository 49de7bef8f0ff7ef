"""Devices without a device: every method, criterion and recipe on a pretended one, and what waits for it.

The pretended device computes on the CPU, so a run on it has the bits of a run on the CPU.
"""

import importlib.util
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pretended import Pretended
from test_contract import (
    ELSEWHERE,
    METHODS,
    NETS,
    RECIPES,
    REFUSED,
    build,
    runs_of,
    skipping,
    target_is_exact_or_missed,
)
from torch import nn

import pruninglab as lab
from pruninglab import criteria, methods, recipes
from pruninglab.criteria.registry import BY_NAME
from pruninglab.randomness import own_randomness

OPTIONS: dict[str, Any] = {"batch_size": 24, "seed": 1, "precision": "fp32", "collapse": "allow"}
QUICK = [("lenet5", name) for name in METHODS if "-" not in name]
SLOW = [(net, name) for net in NETS for name in METHODS if (net, name) not in QUICK]
CASES = [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
CRITERIA: dict[str, Any] = {name: name for name in BY_NAME} | {
    "two-of-four": criteria.NofM(),
    "obd-fisher": criteria.OBD("fisher"),
}
DOUBLES = (
    "GlobalSparseMomentum",
    "SharedWeights",
    "SynFlow",
    "OneShot-two-of-four",
    "OptimalBrainSurgeon",
    "SparseGPT",
    "Wanda",
)
"""Methods that would like to compute in float64, which MPS has not."""

WAITS = {
    "ADMM": "in a run of ten steps it projects the weights at each of them",
    "Gradual-layer": "in a run of ten steps it cuts at each of them",
    "SharedWeights": "it sums gradients over the members of each code, whose numbers are read",
    "SoftSharing": "its mixture is over the kept weights, whose number is read",
    "TargetedDropout": "it chooses at each step which weights may drop",
    "GlobalSparseMomentum": "it chooses at each step which weights are active",
}
"""Methods that wait for the device in every step, and why. All others wait only where they cut or evaluate."""


@pytest.fixture(scope="module")
def nets() -> Callable[[str], tuple[nn.Module, lab.Data]]:
    made: dict[str, tuple[nn.Module, lab.Data]] = {}

    def get(name: str) -> tuple[nn.Module, lab.Data]:
        if name not in made:
            text = name == "transformer"
            data = lab.load("sorting", train=120, test=40) if text else lab.load("digits", train=120, test=40, size=16)
            made[name] = build(name, data, seed=0), data
        return made[name]

    return get


def setting(nets: Any, net: str, name: str) -> tuple[nn.Module, lab.Data, list[lab.Method], dict[str, Any]]:
    model, data = nets(net)
    if (net, name.partition("-")[0]) in REFUSED:
        pytest.skip(REFUSED[net, name.partition("-")[0]])
    if "N2NSkip" in name:
        model = skipping(model, data)
    made, options = ELSEWHERE.get(net, {}).get(name, (METHODS[name], {}))
    return model, data, made, options


def lives_on(run: lab.Run, kind: str) -> None:
    tensors = {**dict(run.model.named_parameters()), **dict(run.model.named_buffers()), **run.masks}
    assert {name: str(t.device) for name, t in tensors.items() if t.device.type != kind} == {}


def same_bits(a: lab.Run, b: lab.Run) -> None:
    for (name, mine), theirs in zip(a.model.state_dict().items(), b.model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize(("net", "name"), CASES)
def test_methods_on_a_device(nets, net, name):
    model, data, made, options = setting(nets, net, name)
    on_cpu = lab.fit(model, data, *made, epochs=2, device="cpu", progress=False, **OPTIONS, **options)
    seen: list[Counter[str]] = []
    with Pretended("cuda") as device:
        run = lab.fit(model, data, *made, epochs=2, progress=lambda r: seen.append(+device.waits), **OPTIONS, **options)
        assert run.device.type == "cuda"
        lives_on(run, "cuda")
    same_bits(run, on_cpu)
    per_step = len(seen) // 2
    inside = [seen[i] - seen[i - 1] for i in range(1, len(seen)) if i % per_step]
    waits = min(inside, key=Counter.total)
    assert bool(waits) == (name in WAITS) or (name.partition("-")[0] in WAITS and "-" in name), waits


@pytest.mark.parametrize("name", CRITERIA)
def test_criteria_on_a_device(nets, name):
    model, data = nets("lenet5")
    with Pretended("cuda"):
        run = lab.fit(
            model, data, methods.OneShot(0.5, CRITERIA[name], scope="layer"), epochs=1, progress=False, **OPTIONS
        )
        lives_on(run, "cuda")


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_on_a_device(nets, name, tmp_path):
    net = "residual" if name == "slimming" else "lenet5"
    model, data = nets(net)
    with Pretended("cuda"):
        for run in runs_of(RECIPES[name][0](model, data, folder=tmp_path, progress=False, **OPTIONS)):
            lives_on(run, "cuda")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cuda", "mps"])
@pytest.mark.parametrize(
    ("net", "name"), [(net, name) for net in NETS for name in RECIPES if (net, name) not in REFUSED]
)
def test_recipes_of_every_network_on_every_device(nets, kind, net, name):
    model, data = nets(net)
    on_cpu = runs_of(RECIPES[name][0](model, data, device="cpu", progress=False, **OPTIONS))
    with Pretended(kind):
        there = runs_of(RECIPES[name][0](model, data, progress=False, **OPTIONS))
        for run in there:
            lives_on(run, kind)
    if kind == "cuda":  # MPS has no float64, so that scores are rounded otherwise
        for run, same in zip(there, on_cpu, strict=True):
            same_bits(run, same)


Chosen = Callable[..., Any]
CHOOSING: dict[str, Chosen] = {
    "Gradual": lambda c, m, d, **o: lab.fit(m, d, methods.Gradual(lab.Linear(0.5), c, "layer", cuts=3), epochs=2, **o),
    "Gradual-reactivate": lambda c, m, d, **o: lab.fit(
        m, d, methods.Gradual(lab.Linear(0.5), c, "layer", cuts=3, reactivate=True), epochs=2, **o
    ),
    "PruneWhileAccurate": lambda c, m, d, **o: lab.fit(
        m,
        d,
        methods.L2(),
        methods.PruneWhileAccurate(0.0, prune_fraction=0.3, every_steps=4, criterion=c),
        epochs=2,
        **o,
    ),
    "SET": lambda c, m, d, **o: lab.fit(m, d, methods.OneShot(0.5, c), methods.SET(0.5, every_steps=3), epochs=2, **o),
    "iterative": lambda c, m, d, **o: recipes.iterative(m, d, 0.5, rounds=2, epochs=1, criterion=c, scope="layer", **o),
    "scratch": lambda c, m, d, **o: recipes.scratch(m, d, 0.5, epochs=1, finetune=1, criterion=c, scope="layer", **o),
    "tickets": lambda c, m, d, **o: recipes.tickets(m, d, 0.5, epochs=1, rounds=1, criterion=c, controls=(), **o),
}
"""All that choose weights by a criterion, beside `OneShot`."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cuda", "mps"])
@pytest.mark.parametrize("way", CHOOSING)
@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_wherever_one_is_chosen(nets, name, way, kind):
    model, data = nets("residual")
    on_cpu = runs_of(CHOOSING[way](CRITERIA[name], model, data, device="cpu", progress=False, **OPTIONS))
    with Pretended(kind):
        there = runs_of(CHOOSING[way](CRITERIA[name], model, data, progress=False, **OPTIONS))
        for run in there:
            lives_on(run, kind)
    if kind == "cuda":
        for run, same in zip(there, on_cpu, strict=True):
            same_bits(run, same)


@pytest.mark.parametrize("name", [n if n in DOUBLES else pytest.param(n, marks=pytest.mark.slow) for n in METHODS])
def test_methods_without_float64(nets, name):
    model, data, made, options = setting(nets, "lenet5", name)
    with Pretended("mps", devices=1):
        run = lab.fit(model, data, *made, epochs=2, progress=False, **OPTIONS, **options)
        assert run.device.type == "mps"
        lives_on(run, "mps")


@pytest.mark.parametrize("name", CRITERIA)
def test_criteria_without_float64(nets, name):
    model, data = nets("lenet5")
    with Pretended("mps", devices=1):
        run = lab.fit(
            model, data, methods.OneShot(0.5, CRITERIA[name], scope="layer"), epochs=1, progress=False, **OPTIONS
        )
        lives_on(run, "mps")


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_what_follows_a_run_on_a_device(nets, kind, tmp_path):
    """Questions, exports and smaller networks of a run that lives on a device."""
    model, data = nets("lenet5")
    with Pretended(kind):
        cut = methods.OneShot(0.5, "filter_l2", scope="layer", unit="channel")
        run = lab.fit(model, data, cut, epochs=1, progress=False, checkpoint=tmp_path / "run.safetensors", **OPTIONS)
        again = lab.fit(model, data, cut, epochs=1, progress=False, checkpoint=tmp_path / "run.safetensors", **OPTIONS)
        same_bits(run, again)
        small = lab.structured.shrink(run, data)
        assert next(small.model.parameters()).device.type == kind
        lab.storage.save(run, tmp_path / "small.plab")
        run.snapshot().save(tmp_path / "snapshot.safetensors")
        lab.fit(model, data, epochs=2, start=run.snapshot(), progress=False, **OPTIONS)
        lab.structured.silence(run, data)
        lab.impact([run], [run], data.test)
        lab.prune(run, 0.9, "taylor", data=data, collapse="allow")


def test_a_second_device_is_its_own(nets):
    """A run on cuda:1 stays there, is named by that device, and moves no generator of another one."""
    model, data = nets("lenet5")
    with Pretended("cuda") as device:
        before = [source.get_state() for source in device.defaults]
        run = lab.fit(
            model, data, methods.SET(0.5, every_steps=2), epochs=1, device="cuda:1", progress=False, **OPTIONS
        )
        assert {p.device for p in run.model.parameters()} == {torch.device("cuda:1")}
        assert run.result.environment["device"] == "Pretended cuda:1"
        with own_randomness(3, "cuda:1"):
            assert torch.rand(2, device="cuda:1").device == torch.device("cuda:1")
            elsewhere = torch.rand(2, device="cuda"), torch.rand(2)  # not the device of the run's own generator
        assert [str(t.device) for t in elsewhere] == ["cuda:0", "cpu"]
        for source, state in zip(device.defaults, before, strict=True):
            assert torch.equal(source.get_state(), state)


def draws(drop: float) -> list[tuple[str, Callable[[], Any]]]:
    x = torch.randn(3, 2, 4)
    attention, lstm = nn.MultiheadAttention(4, 2, dropout=drop), nn.LSTM(4, 4, 2, dropout=drop)
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3, 2]))
    gru = nn.GRU(4, 4, 2, dropout=drop)
    return [
        ("attention", lambda: attention(x, x, x)[0]),
        ("product", lambda: nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=drop)),
        ("lstm", lambda: lstm(x)[0]),
        ("packed lstm", lambda: lstm(packed)[0].data),
        ("gru", lambda: gru(x)[0]),
        ("packed gru", lambda: gru(packed)[0].data),
    ]


@pytest.mark.parametrize("at", range(6))
def test_the_generator_moves_only_where_something_is_dropped(at):
    for drop in (0.0, 0.5):
        name, draw = draws(drop)[at]
        with own_randomness(0) as own:
            state, outside = own.source.get_state(), torch.get_rng_state()
            first = draw()
            assert torch.equal(own.source.get_state(), state) == (drop == 0), name
            assert torch.equal(torch.get_rng_state(), outside)
            own.source.set_state(state)
            assert torch.equal(draw(), first)


def test_a_fork_does_not_wait_for_the_device():
    with Pretended("cuda") as device, own_randomness(0, "cuda"):
        attention = nn.MultiheadAttention(4, 2, dropout=0.5).to("cuda")
        x = torch.randn(3, 2, 4, device="cuda")
        device.waits.clear()
        attention(x, x, x)
        assert device.waits == {}


def test_the_pretended_device_refuses_what_cuda_refuses():
    with Pretended("cuda") as device:
        x, y = torch.ones(3, device="cuda"), torch.ones(3)
        for mixed in (lambda: x + y, lambda: x @ y, lambda: torch.cat([x, y]), lambda: y.add_(x), x.numpy):
            with pytest.raises((RuntimeError, TypeError), match=r"same device|numpy"):
                mixed()
        with pytest.raises(RuntimeError, match="generator device"):
            torch.rand(3, device="cuda", generator=torch.Generator())
        assert (x + torch.tensor(2.0)).device == x[torch.tensor([1])].device == x.device
        device.waits.clear()
        assert (bool(x.all()), x.sum().item(), x.tolist(), x[x > 0].cpu().numpy().tolist()) == (
            True,
            3,
            [1] * 3,
            [1] * 3,
        )
        assert device.waits.total() == 5
        with torch.inference_mode():
            assert x.clone().to("cpu").device.type == "cpu"
        w = torch.ones(3, device="cuda", requires_grad=True)
        (w * 2).sum().backward()
        assert w.grad is not None
        assert w.grad.device == x.device


@pytest.mark.parametrize("name", ["Dense", "Gradual", "RigL", "RelevanceL2", "L0"])
def test_bfloat16_keeps_the_contract(nets, name):
    """On CUDA it is what `precision="auto"` means."""
    model, data, made, options = setting(nets, "lenet5", name)
    chosen: dict[str, Any] = OPTIONS | {"precision": "bf16"} | options
    run, again = (lab.fit(model, data, *made, epochs=2, device="cpu", progress=False, **chosen) for _ in range(2))
    target_is_exact_or_missed(run)
    same_bits(run, again)
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}
    chosen["precision"] = "auto"
    with Pretended("cuda"):
        there = lab.fit(model, data, *made, epochs=2, progress=False, **chosen)
    assert there.config["precision"] == "bf16"
    same_bits(there, run)


def test_a_record_says_what_its_device_does_not_promise(nets):
    model, data = nets("lenet5")
    assert lab.fit(model, data, epochs=0, device="cpu", progress=False).result.environment["not_deterministic"] == []
    for kind, word in (("cuda", "pooling"), ("mps", "any")):
        with Pretended(kind):
            told = lab.fit(model, data, epochs=0, progress=False).result.environment["not_deterministic"]
        assert word in told[0]


def test_the_report_of_a_gpu(tmp_path, capsys, monkeypatch):
    spec = importlib.util.spec_from_file_location("gpu_report", Path(__file__).parent / "gpu" / "report.py")
    assert spec
    assert spec.loader
    report = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(report)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert report.main(out=tmp_path / "none.json") == 0
    assert "no CUDA device" in capsys.readouterr().out
    assert not (tmp_path / "none.json").exists()

    few = {"numerics: lenet5 beside the CPU", "numerics: scores of taylor", "contract: lenet5 OneShot fp32"}
    every = list(report.checks("cuda"))
    assert few <= {name for name, _ in every}
    broken = ("broken", lambda: 1 / 0)
    monkeypatch.setattr(report, "checks", lambda device: [*(c for c in every if c[0] in few), broken])
    with Pretended("cuda"):
        assert report.main(out=tmp_path / "report.json") == 1
        assert report.main(out=tmp_path / "late.json", seconds=-1) == 0
    written = json.loads((tmp_path / "report.json").read_text())
    assert {name for name, r in written["results"].items() if r["status"] == "passed"} == few
    assert written["failed"] == ["broken"]
    assert len(json.loads((tmp_path / "late.json").read_text())["left_out"]) == 4
