"""A network that draws nothing is called directly, and every other one draws what it always drew."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import pruninglab as lab
from pruninglab.layers import drawing
from pruninglab.layers.drawing import draws_nothing
from pruninglab.models.building import MODELS
from pruninglab.randomness import own_randomness

FIT = importlib.import_module("pruninglab.train.fit")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 16), nn.Dropout(0.0), nn.ReLU(), nn.Linear(16, 4))


def quiet() -> nn.Sequential:
    model = net()
    model[1] = nn.Identity()
    return model


class Own(nn.Module):
    """Draws from its fourth call on."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.calls = quiet(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.inside(x + torch.randn_like(x) if self.training and self.calls > 3 else x)


class Shaken(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight + 0.01 * torch.randn(weight.shape)


def rate(model: Any) -> None:
    model[1].p = 0.5


def replaced(model: Any) -> None:
    model[1] = nn.Dropout(0.5)


def hooked(model: Any) -> None:
    model[0].register_forward_hook(lambda module, given, out: F.dropout(out, 0.5, module.training))


def noisy(module: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
    return (given[0] + torch.rand(given[0].shape) if module.training else given[0],)


def hooked_before(model: Any) -> None:
    model[3].register_forward_pre_hook(noisy)


def patched(model: Any) -> None:
    model[2].forward = lambda x: F.rrelu(x, training=model[2].training)


def shaken(model: Any) -> None:
    parametrize.register_parametrization(model[3], "weight", Shaken(), unsafe=True)


def asleep(model: Any) -> None:
    model[1].p = 0.5
    model[1].eval()


def awake(model: Any) -> None:
    model[1].train()


def nothing(model: Any) -> None:
    pass


@dataclass
class Changes(lab.Method):
    """Changes the network at its third step, and before the first."""

    first: Callable[[Any], None]
    then: Callable[[Any], None]
    observes = True

    def on_start(self, run: lab.Run) -> None:
        self.first(run.model)

    def on_step(self, run: lab.Run) -> None:
        if run.step == 3:
            self.then(run.model)


CASES = {
    "a rate that changes": (net, nothing, rate),
    "a module that is replaced": (quiet, nothing, replaced),
    "a hook": (quiet, nothing, hooked),
    "a hook before": (quiet, nothing, hooked_before),
    "a patched forward": (quiet, nothing, patched),
    "a layer that wakes": (net, asleep, awake),
    "a layer that goes to sleep": (net, rate, asleep),
    "a module of one's own": (Own, nothing, nothing),
}


@pytest.mark.parametrize("case", CASES)
def test_whatever_begins_to_draw_draws_what_it_always_drew(
    case: str, blobs: lab.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, first, then = CASES[case]
    model = made()

    def losses() -> list[Any]:
        run = lab.fit(model, blobs, Changes(first, then), epochs=3, batch_size=40, progress=False)
        return [entry["loss"] for entry in run.history]

    torch.manual_seed(1)
    before = torch.get_rng_state()
    found = losses()
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr(FIT, "draws_nothing", lambda net: False)
    assert losses() == found


def test_a_parametrization_may_draw() -> None:
    model = quiet()
    assert draws_nothing(model)
    shaken(model)
    assert not draws_nothing(model)


def test_a_network_that_draws_nothing_is_called_directly(blobs: lab.Data, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    looked = own_randomness.__torch_function__
    monkeypatch.setattr(
        own_randomness, "__torch_function__", lambda self, f, *rest: seen.append(f) or looked(self, f, *rest)
    )
    calls = []
    for made in (quiet, net):
        seen.clear()
        lab.fit(made(), blobs, epochs=1, progress=False)
        assert F.cross_entropy in seen
        calls.append(seen.count(F.linear))
    assert calls == [2, 2 + 2 * 2]  # two layers: in the trial, and in each step


@pytest.mark.parametrize("name", MODELS)
def test_models_of_this_package_draw_only_through_modules_of_torch(name: str) -> None:
    """Their own code is taken at its word, so each is watched here."""
    shape = (16,) if name in ("transformer", "gpt") else (3, 32, 32)
    images: Any = type("Images", (), {"shape": shape, "classes": 10})
    small: Any = {"width": 0.1} if name in ("vgg16", "alexnet") else {}
    try:
        model = lab.build(name, images, seed=0, **small).train()
    except lab.ConfigError:
        pytest.skip("it takes other images")
    x = torch.zeros(2, *shape, dtype=torch.int64 if len(shape) == 1 else torch.float32)
    watching = own_randomness(0)
    drawn: list[Any] = []
    watching._handlers = {f: lambda f, args, kwargs: drawn.append(f) or f(*args, **kwargs) for f in watching._handlers}
    with watching, torch.no_grad():
        model(x)
    assert not (draws_nothing(model) and drawn)


def test_types_that_never_draw_do_not() -> None:
    """Their source names no function that draws."""
    names = {f.__name__ for f in own_randomness(0)._handlers} | {"training"}
    for kind in drawing._QUIET - {type(None), nn.ModuleList, nn.ModuleDict}:
        for base in kind.__mro__[: kind.__mro__.index(nn.Module)]:
            forward = vars(base).get("forward")
            if forward and "BatchNorm" not in base.__name__:
                assert not names & {*forward.__code__.co_names}, kind


@dataclass
class Late(lab.Method):
    """Changes a weight at the end."""

    def on_end(self, run: lab.Run) -> None:
        next(iter(run.model.parameters()))[0] += 1


@pytest.mark.parametrize(
    ("made", "method", "measured"),
    [
        (quiet, lab.methods.Dense(), ["val", "val", "test"]),
        (quiet, lab.methods.Gradual(lab.Cubic(0.5)), ["val", "val", "test"]),
        (quiet, Late(), ["val", "val", "val", "test"]),
        (net, lab.methods.Dense(), ["val", "val", "val", "test"]),
    ],
)
def test_validation_images_are_looked_at_once_more_only_if_the_network_has_changed(
    made: Any, method: lab.Method, measured: list[str], blobs: lab.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    really = lab.train.Training.measured
    monkeypatch.setattr(lab.train.Training, "measured", lambda run, split: seen.append(split) or really(run, split))
    run = lab.fit(made(), blobs, method, epochs=2, progress=False)
    assert seen == measured
    assert run.result.accuracy["val"] == run.evaluate("val")
