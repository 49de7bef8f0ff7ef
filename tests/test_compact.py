"""`fit(compact=True)`: the same run, computed without what pruning has made useless."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from test_contract import ELSEWHERE, METHODS
from torch import Tensor, nn

import pruninglab as lab
from pruninglab import methods
from pruninglab.layers.names import canonical_parameters
from pruninglab.models.resnet import BasicBlock
from pruninglab.train.compact import Compact, find_groups


def vgg(shape: tuple[int, ...], classes: int) -> nn.Module:
    layers: Any = {"conv1": nn.Conv2d(shape[0], 6, 3, padding=1, bias=False), "bn1": nn.BatchNorm2d(6)}
    layers |= {"relu1": nn.ReLU(), "pool1": nn.MaxPool2d(2), "conv2": nn.Conv2d(6, 8, 3, padding=1, bias=False)}
    layers |= {"bn2": nn.BatchNorm2d(8), "relu2": nn.ReLU(), "pool2": nn.MaxPool2d(2), "flatten": nn.Flatten()}
    layers |= {"fc1": nn.Linear(32, 16), "relu3": nn.ReLU(), "fc2": nn.Linear(16, classes)}
    return nn.Sequential(OrderedDict(layers))


def resnet(shape: tuple[int, ...], classes: int) -> nn.Module:
    layers: Any = {"conv1": nn.Conv2d(shape[0], 6, 3, padding=1, bias=False), "bn1": nn.BatchNorm2d(6)}
    layers |= {"relu1": nn.ReLU(), "block1": BasicBlock(6, 6, 1, "B"), "block2": BasicBlock(6, 8, 2, "A")}
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(8, classes)}
    return nn.Sequential(OrderedDict(layers))


NETS: dict[str, Any] = {"lenet300": "lenet300", "lenet5": "lenet5", "vgg": vgg, "resnet": resnet}


@pytest.fixture(scope="module")
def data() -> lab.Data:
    return lab.load("digits", train=90, test=40, size=8)


def build(name: str, data: lab.Data) -> nn.Module:
    return lab.build(NETS[name], data, seed=0).double()


def in_64_bits(model: nn.Module, x: Tensor) -> Tensor:
    """Where sums in another order differ by less than anybody sees, after however many steps."""
    return model(x.double())


def train(model: nn.Module, data: lab.Data, *made: lab.Method, **options: Any) -> lab.train.Training:
    how = {"epochs": 3, "batch_size": 24, "seed": 1, "progress": False, "forward": in_64_bits, **options}
    return lab.fit(model, data, *made, **how)


def alike(one: lab.train.Training, other: lab.train.Training) -> None:
    """Masks to the bit, weights and the numbers of the record up to rounding."""
    assert one.masks.fingerprint == other.masks.fingerprint
    for (name, w), v in zip(one.model.named_parameters(), other.model.parameters(), strict=True):
        assert torch.allclose(w, v, rtol=1e-5, atol=1e-7), name
    a, b = one.result, other.result
    assert (a.status, a.steps, a.cuts, a.sparsity, a.layers) == (b.status, b.steps, b.cuts, b.sparsity, b.layers)
    assert (one.val, one.test, a.flops) == (other.val, other.test, b.flops)
    assert a.config == b.config
    for mine, theirs in zip(one.history, other.history, strict=True):
        assert mine["kept"] == theirs["kept"]
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert mine["val_accuracy"] == theirs["val_accuracy"]


SOME: dict[str, tuple[list[lab.Method], dict[str, Any]]] = {
    "channels": (
        [methods.OneShot(0.5, "filter_l2", scope="layer", unit="channel"), methods.Silence()],
        {"weight_decay": 1e-2},
    ),
    "weights": (
        [methods.RelevanceL2(1e-2), methods.Gradual(lab.Cubic(0.96))],
        {"optimizer": "sgd", "biases": True, "collapse": "allow"},
    ),
}


@pytest.mark.parametrize("made", SOME)
@pytest.mark.parametrize("net", NETS)
def test_a_run_is_the_same_with_compact(net, made, data, monkeypatch):
    left: list[float] = []
    follow = Compact.follow

    def watched(self: Compact, *given: Any) -> None:
        follow(self, *given)
        sizes = {name: p.numel() for name, p in self.model.named_parameters()}
        picked = {name: whole[index].numel() for name, whole, index in self.parameters}
        left.append(sum((sizes | picked).values()) / sum(sizes.values()))

    monkeypatch.setattr(Compact, "follow", watched)
    (chosen, options), model = SOME[made], build(net, data)
    alike(train(model, data, *chosen, **options), train(model, data, *chosen, compact=True, **options))
    assert left[-1] < (0.6 if made == "channels" else 0.95), "nothing was left out"


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("net", [*NETS, "transformer"])
def test_every_method_gives_the_same_run_or_is_refused(net, name, data):
    """On every network; `keep` and `patience` look at the best state too."""
    options: dict[str, Any] = {"keep": "best", "weight_decay": 1e-3}
    made, model = METHODS[name], build(net, data) if net in NETS else None
    if model is None:
        data = lab.load("sorting", train=90, test=40)
        model = lab.build("transformer", data, seed=0, width=8, heads=2)
        made, more = ELSEWHERE["transformer"].get(name, (made, {}))
        model, options = model.double(), options | more | {"forward": None}
    if "N2NSkip" in name:
        model = lab.build("n2nskip", data, seed=0, base="lenet5").double() if net == "lenet5" else None
    try:
        assert model is not None
        plain = train(model, data, *made, **options)
    except (AssertionError, lab.ConfigError):
        return  # it is not for this network at all
    try:
        compact = train(model, data, *made, compact=True, **options)
    except lab.ConfigError as error:
        if not str(error).startswith("compact=True:"):
            raise
        return
    alike(plain, compact)


@pytest.mark.parametrize("net", NETS)
def test_any_masks_leave_logits_and_gradients_as_they_are(net, data):
    """Masks at random, of weights and of channels, with and without biases and norms; in training and in eval mode."""
    model, draw = build(net, data).train(), torch.Generator().manual_seed(0)
    x = next(iter(data.train.batches([torch.arange(12)])))[0].double()
    compact = Compact(model, x, find_groups(model, x))
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for trial in range(12):
        model.load_state_dict(start)
        masks = {}
        for name, p in canonical_parameters(model).items():
            if p.ndim > 1 or trial % 3:
                density = (1.0, 0.5, 0.1, 0.02)[int(torch.randint(4, (), generator=draw))]
                rows = torch.rand(len(p), *[1] * (p.ndim - 1), generator=draw) < 0.6
                masks[name] = (torch.rand(p.shape, generator=draw) < density) & rows
                p.data.mul_(masks[name])
        compact.follow(masks, {})
        seen = []
        for call in (model, compact):
            buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
            logits = call(x)
            gradients = torch.autograd.grad(logits.sin().sum(), [*model.parameters()])
            after = {name: buffer.clone() for name, buffer in model.named_buffers()}
            model.load_state_dict(buffers, strict=False)
            with torch.inference_mode():
                evaluated = (model.eval(), call(x))[1]
            model.train()
            seen.append((logits, evaluated, gradients, after))
        (logits, evaluated, gradients, after), (others, looked, found, left) = seen
        assert torch.allclose(logits, others, atol=1e-12)
        assert torch.allclose(evaluated, looked, atol=1e-12)
        for (name, p), g, f in zip(model.named_parameters(), gradients, found, strict=True):
            kept = masks.get(name, torch.ones_like(p, dtype=torch.bool))
            assert torch.allclose(g * kept, f * kept, atol=1e-12), name
        for name, buffer in after.items():
            index = compact.kept.get(name, ())
            assert torch.allclose(buffer[index], left[name][index], atol=1e-12), name


@dataclass
class Breaks(lab.Method):
    at: ClassVar[int] = -1

    def on_step(self, run: lab.Run) -> None:
        if run.step == self.at:
            run.interrupt()


@pytest.mark.parametrize("at", [5, 6])
def test_it_resumes_to_the_same_bits_within_an_epoch_and_after_it(at, data, tmp_path, monkeypatch):
    """Although weights were cut since the network was compacted last: it goes on as it was compacted then."""
    kept: list[int] = []
    follow = Compact.follow
    monkeypatch.setattr(
        Compact, "follow", lambda self, m, held: (kept.append(lab.Masks(m).kept), follow(self, m, held))
    )
    model = lab.build("lenet300", data, seed=0)
    made = (methods.Gradual(lab.Linear(0.97), cuts=12), methods.Silence(), Breaks())
    how: Any = {"compact": True, "forward": None}
    whole = train(model, data, *made, **how)
    of_whole, kept[:] = kept[:], []
    monkeypatch.setattr(Breaks, "at", at)
    stopped = train(model, data, *made, checkpoint=tmp_path / "run", **how)
    assert stopped.status == "interrupted"
    monkeypatch.setattr(Breaks, "at", -1)
    kept.clear()
    resumed = train(model, data, *made, checkpoint=tmp_path / "run", **how)
    assert kept[1:] == of_whole[1:]
    assert all(map(torch.equal, whole.model.parameters(), resumed.model.parameters()))
    assert whole.result.environment["compact"]


@dataclass
class Revives(lab.Method):
    revived: int = field(init=False)

    def on_epoch(self, run: lab.Run) -> None:
        run.grow({name: torch.ones_like(mask) for name, mask in run.masks.items()})


class Counts(nn.Module):
    """Its code takes the mean over channels, which no layer shows."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 4, 3), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.one(x).relu()
        return self.two((hidden / (1 + hidden.mean(1, keepdim=True))).mean((2, 3)))


REFUSED: dict[str, tuple[Any, list[lab.Method], dict[str, Any], str]] = {
    "RigL": ("lenet300", [methods.RigL(0.9)], {}, "RigL looks at pruned weights"),
    "SET": ("lenet300", [methods.SET(0.9)], {}, "SET looks at pruned weights"),
    "surgery": ("lenet300", [methods.DynamicSurgery(0.9)], {}, "DynamicSurgery looks at pruned weights"),
    "momentum": ("lenet300", [methods.SparseMomentum(0.9)], {}, "SparseMomentum looks at pruned weights"),
    "reactivate": ("lenet300", [methods.Gradual(lab.Cubic(0.9), reactivate=True)], {}, "Gradual looks at pruned"),
    "gates": ("lenet300", [methods.L0()], {}, "L0 puts a network of its own around the model"),
    "clip": ("lenet300", [], {"clip": 1.0}, "the norm of all gradients"),
    "optimizer": ("lenet300", [], {"optimizer": torch.optim.Adafactor}, "Adafactor is not known to move each weight"),
    "dropout": (lambda s, c: nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Dropout(), nn.Linear(9, c)), [], {},
                "draws random numbers"),
    "code": (lambda s, c: Counts(), [], {}, "mixes channels, or counts them"),
    "weight norm": (lambda s, c: nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(64, 9)),
                                               nn.Linear(9, c)), [], {}, "compact=True"),
    "your own": ("lenet300", [methods.OneShot(0.9), Revives()], {"collapse": "allow"}, "none can come back"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_could_not_be_exact_is_refused(case, data):
    model, made, options, why = REFUSED[case]
    built = lab.build(model, data, seed=0) if isinstance(model, str) else model(data.shape, data.classes)
    with pytest.raises(lab.ConfigError, match=why):
        train(built, data, *made, **{"compact": True, "forward": None, "epochs": 2, **options})
