"""Laws over sequences of public calls: prune, fit, grow, snapshot, store, import, remove channels, in any order.

Hypothesis draws networks and calls. After each call the masks, the weights, the files and every number of a record are
counted again by other code (`recount`). The package's own errors are answers; any other exception or warning is a
failure. How often each call was answered is counted, so that no law holds only because everything was refused.
"""

import copy
import hashlib
import io
import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from fractions import Fraction
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import recount
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune as torch_prune
from torch.utils.data import TensorDataset

import pruninglab as lab
from pruninglab import methods as m
from pruninglab.criteria import BY_NAME, OBD

OWN = (lab.ConfigError, lab.DataError, lab.RunError)
UNITS, SCOPES = ("weight", "channel", "kernel"), ("global", "layer", "erk")
BY_WEIGHTS = ("magnitude", "layer_magnitude", "random", "filter_l1", "filter_l2")
"""Criteria that need no data and score every weight: whether a cut by them is refused is a matter of counting."""


# ---------------------------------------------------------------------------------------------- networks and data


class Residual(nn.Module):
    """A sum of two ways with norms behind it, one of which is read twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv, self.last = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.GroupNorm(2, 4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + F.relu(self.norm(x))
        return self.fc(F.relu(self.last(x + self.conv(x))).mean((2, 3)))


class Listed(nn.Module):
    """Layers in a container that is not called itself."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(32, 8), nn.Linear(8, 8), nn.Linear(8, 3)])

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers:
            x = layer(F.hardswish(x))
        return x


class Twice(nn.Module):
    """One layer that is called twice, and two that share their weight."""

    def __init__(self):
        super().__init__()
        self.first, self.again = nn.Linear(32, 6), nn.Linear(6, 6)
        self.tied, self.fc = nn.Linear(6, 6), nn.Linear(6, 3)
        self.tied.weight = self.again.weight

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x.flatten(1)))
        return self.fc(self.tied(F.relu(self.again(F.relu(self.again(x))))))


class Overlapping(nn.Module):
    """Two parameters in the same memory."""

    def __init__(self):
        super().__init__()
        self.first, self.a, self.b, self.fc = nn.Linear(32, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.b.weight = nn.Parameter(self.a.weight.data)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(F.relu(self.a(self.first(x.flatten(1)))))))


class Recurrent(nn.Module):
    """The 16 places of an image one after the other."""

    def __init__(self, kind: Callable[..., nn.RNNBase], **options: Any):
        super().__init__()
        self.cell = kind(2, 4, batch_first=True, **options)
        self.fc = nn.Linear(4 * (1 + self.cell.bidirectional), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.cell(x.flatten(2).transpose(1, 2))[0][:, -1])


class Attending(nn.Module):
    """One layer of a transformer over the 16 places of an image."""

    def __init__(self):
        super().__init__()
        self.inside = nn.Linear(2, 4)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(4, 2, 6, 0.1, batch_first=True), 1, enable_nested_tensor=False
        )
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.encoder(self.inside(x.flatten(2).transpose(1, 2))).mean(1))


class Words(nn.Module):
    """An embedding that is the last layer too."""

    def __init__(self):
        super().__init__()
        self.embedding, self.fc = nn.Embedding(7, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.relu(self.fc(self.embedding(x).mean(1))), self.embedding.weight)

    def bare_products(self) -> recount.Products:
        return [(2 * 7 * 6, self.embedding.weight)]


def grouped() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2), nn.Hardswish()),
        *(nn.Flatten(), nn.Linear(16, 3)),
    )


def depthwise() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 6, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)),
    )


def transposed() -> nn.Module:
    return nn.Sequential(
        *(nn.ConvTranspose2d(2, 4, 2, groups=2), nn.PReLU(), nn.Flatten(2), nn.Conv1d(4, 3, 5, stride=5), nn.ReLU()),
        *(nn.Flatten(), nn.LayerNorm(15), nn.Linear(15, 3)),
    )


def frozen() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    net[1].requires_grad_(False)
    return net


NETS: dict[str, Callable[[], nn.Module]] = {
    "grouped": grouped,
    "depthwise": depthwise,
    "transposed": transposed,
    "frozen": frozen,
    "residual": Residual,
    "listed": Listed,
    "twice": Twice,
    "overlapping": Overlapping,
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU, bidirectional=True, num_layers=2),
    "attention": Attending,
    "words": Words,
}


def wrapped(x: Tensor, y: Tensor, name: str) -> lab.Data:
    return lab.wrap(TensorDataset(x[:34], y[:34]), TensorDataset(x[34:], y[34:]), val=0.2, name=name)


def _data() -> dict[str, lab.Data]:
    source = torch.Generator().manual_seed(0)
    y = torch.arange(64) % 3
    x = torch.randn(64, 2, 4, 4, generator=source) + torch.randn(3, 2, 4, 4, generator=source)[y]
    return {
        "images": wrapped(x, y, "images"),
        "words": wrapped(torch.randint(7, (64, 5), generator=source), y, "words"),
    }


DATA = _data()


def built(name: str, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return NETS[name]()


# ------------------------------------------------------------------------------------------- who looks, and when


class Looking:
    """What is known of the run that goes on now, for those who look at its network from inside."""

    run: Any = None
    base: Mapping[str, Tensor] | None = None
    renews = False

    def rest(self, base: Mapping[str, Tensor] | None = None, renews: bool = False) -> None:
        self.run, self.base, self.renews = None, base, renews

    def begin(self, run: lab.Run) -> None:
        self.run, self.seen, self.cuts = run, run.masks.clone(), 0

    def weights(self) -> None:
        if self.run:
            zero_where(self.run.masks, self.run.weights)

    def masks(self) -> None:
        """A mask grows only where a cut says how many came back, and each cut begins where the one before ended."""
        run, new = self.run, self.run.cuts[self.cuts :]
        assert (run.masks & ~self.seen).kept <= sum(cut.revived for cut in new)
        kept = [self.seen.kept, *itertools.chain(*((cut.before, cut.after) for cut in new)), run.masks.kept]
        assert kept[::2] == kept[1::2]
        self.seen, self.cuts = run.masks.clone(), len(run.cuts)


LOOKING = Looking()


def zero_where(masks: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    for name in masks.keys() & parameters.keys():
        assert not bool((parameters[name].detach()[~masks[name]] != 0).any()), f"{name}: pruned weights are not 0"


@dataclass(frozen=True)
class Looks:
    """A criterion that looks at the network which it scores: what is pruned is 0 in it."""

    inner: str

    def __call__(self, model: nn.Module, batches: Any) -> dict[str, Tensor]:
        zero_where(LOOKING.base or {}, recount.named(model))
        if not LOOKING.renews:
            LOOKING.weights()
        return BY_NAME[self.inner](model, batches)


def looking_loss(logits: Tensor, y: Tensor) -> Tensor:
    LOOKING.weights()
    return F.cross_entropy(logits, y)


@dataclass
class Watches(lab.Method):
    """Stands before all other methods and looks at every moment at which the masked network is there."""

    def on_start(self, run: lab.Run) -> None:
        LOOKING.begin(run)

    def on_loss(self, run: lab.Run) -> None:
        LOOKING.weights()
        LOOKING.masks()
        assert len(run.y) <= run.options.batch_size + (run.options.batch_size > 1)

    def on_grad(self, run: lab.Run) -> None:
        LOOKING.weights()

    def on_epoch(self, run: lab.Run) -> None:
        LOOKING.weights()
        LOOKING.masks()

    def on_end(self, run: lab.Run) -> None:
        LOOKING.masks()


class Stubborn:
    """A criterion that is a plain object with a state."""

    def __init__(self, sign: float):
        self.sign = sign

    def __call__(self, model: nn.Module, batches: Any) -> dict[str, Tensor]:
        return {name: self.sign * score for name, score in BY_NAME["magnitude"](model, batches).items()}


# --------------------------------------------------------------------------------------------------- what is drawn

AMOUNTS = st.sampled_from([0, 0.1, Fraction(1, 2), 0.5, 0.75, 0.9, 0.97, {"*": 0.6}, {"*weight*": 0.3, "*": 0.5}])
CRITERIA = st.sampled_from([*BY_NAME, *BY_WEIGHTS])
PLANS: dict[str, Callable[..., list[lab.Method]]] = {
    "none": lambda a, u, s, c: [],
    "oneshot": lambda a, u, s, c: [m.OneShot(a, c, scope=s, unit=u)],
    "gradual": lambda a, u, s, c: [m.Gradual(lab.Cubic(a), c, s, u, cuts=2, end=1.0)],
    "renewed": lambda a, u, s, c: [m.Gradual(lab.Linear(a), c, s, u, cuts=2, end=1.0, reactivate=True)],
    "two": lambda a, u, s, c: [m.OneShot(a, c, scope=s), m.Gradual(lab.Cubic(a), unit=u, scope=s, cuts=1, end=1.0)],
    "gate": lambda a, u, s, c: [m.L1(), m.PruneWhileAccurate(0.0, None, 0.3, 1, criterion=c, scope=s, unit=u)],
    "admm": lambda a, u, s, c: [m.ADMM(a, scope=s, unit=u, updates=2)],
    "pgd": lambda a, u, s, c: [m.PGD(a, s, u)],
    "set": lambda a, u, s, c: [m.SET(a, s, 0.5, 1)],
    "rigl": lambda a, u, s, c: [m.RigL(a, s, 0.5, 1, end=1.0)],
    "momentum": lambda a, u, s, c: [m.SparseMomentum(a, s, 0.5, 1)],
    "surgery": lambda a, u, s, c: [m.DynamicSurgery(a, scope=s, gamma=0.5, end=1.0)],
    "gsm": lambda a, u, s, c: [m.GlobalSparseMomentum(a, scope=s)],
    "dropout": lambda a, u, s, c: [m.TargetedDropout(a, scope=s, unit=u)],
    "variational": lambda a, u, s, c: [m.VariationalDropout()],
    "l0": lambda a, u, s, c: [m.L0(unit=u, droprate=0.5)],
    "synflow": lambda a, u, s, c: [m.SynFlow(a, rounds=3)],
    "surgeon": lambda a, u, s, c: [m.OptimalBrainSurgeon(a, scope=s, rounds=1, batches=1)],
    "weightmom": lambda a, u, s, c: [m.WeightMom(lab.Linear(a), begin=0, end=1)],
    "relevance": lambda a, u, s, c: [m.RelevanceL2(0.1), m.OneShot(a, c, scope=s, unit=u)],
    "lobster": lambda a, u, s, c: [m.LOBSTER(patience=1, tolerance=0.5)],
    "sensitivity": lambda a, u, s, c: [m.Sensitivity(threshold=0.05)],
    "sharing": lambda a, u, s, c: [m.SoftSharing(components=3, zero=0.2)],
    "quantize": lambda a, u, s, c: [m.OneShot(a, c, scope=s, unit=u), m.Quantize(2, parts=2, updates=2)],
    "books": lambda a, u, s, c: [m.OneShot(a, c, scope=s, unit=u), m.SharedWeights(2)],
    "lasso": lambda a, u, s, c: [m.GroupLasso(1e-2), m.OneShot(a, c, scope="layer", unit="channel"), m.Silence()],
    "slimming": lambda a, u, s, c: [m.Slimming(1e-2), m.OneShot(a, "norm_scale", unit="channel")],
}
BASIC = ("none", "oneshot", "gradual", "renewed", "two")
GROWING = {"set", "rigl", "momentum", "surgery", "gsm"}
PLAN = st.sampled_from([*PLANS])
RARELY = st.sampled_from([False] * 7 + [True])
UNIT, SCOPE = st.sampled_from(UNITS), st.sampled_from(SCOPES)
SEED = st.integers(0, 2)
FREELY = {"collapse": "allow"}
"""Any layer may be cut away entirely here."""
OPTIONS = st.fixed_dictionaries(
    {"epochs": st.sampled_from([1, 1, 0, 2]), "seed": SEED, "batch_size": st.sampled_from([13, 26, 9, 100, 1])},
    optional={
        "optimizer": st.sampled_from(["adam", "adamw", "sgd"]),
        "lr": st.sampled_from([1e-3, 0.05]),
        "weight_decay": st.just(1e-2),
        "precision": st.just("bf16"),
        "keep": st.just("best"),
        "patience": st.just(1),
    },
)

NUMBER = itertools.count()
TALLY: Counter[tuple[str, bool]] = Counter()
"""How often each call was answered with a result, and how often with an error of the package."""


# ------------------------------------------------------------------------------------------------------ the machine


class Sequences(RuleBasedStateMachine):
    """One network that goes through calls: `model` under `masks`, and `run` if a training made it."""

    folder: Path
    elsewhere: list[tuple[str, str, str]]
    """Files that another process is to read at the end: kind, path and hash of what was written."""

    @initialize(net=st.sampled_from(list(NETS)), seed=SEED, biases=st.booleans(), norms=RARELY)
    def begin(self, net: str, seed: int, biases: bool, norms: bool) -> None:
        self.wide: dict[str, Any] = {"biases": biases, "norms": norms}
        self.net, self.data = net, DATA["words" if net == "words" else "images"]
        self.x = next(iter(self.data.val.batches([torch.arange(2)])))[0]
        self.hold(built(net, seed), lab.Masks())
        self.shots: list[tuple[lab.Snapshot, dict[str, Any]]] = []
        self.fixed = False
        self.trained = 0
        self.last = ""

    def hold(self, model: nn.Module, masks: Mapping[str, Tensor], run: lab.Run | None = None) -> None:
        self.model, self.masks, self.run = model, lab.Masks(masks), run
        self.before = {name: t.clone() for name, t in model.state_dict().items()}

    def held_by(self, weights: Mapping[str, Tensor]) -> lab.Masks:
        """What holds now of the masks of these weights."""
        return lab.Masks({n: self.masks.get(n, torch.ones_like(w, dtype=torch.bool)) for n, w in weights.items()})

    @property
    def subject(self) -> Any:
        return self.run or self.model

    def call(self, what: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """The result, or None where the package refused; what went in is as it was."""
        try:
            result = function(*args, **options)
        except OWN:
            result = None
        TALLY[what, result is not None] += 1
        self.last = what
        after = self.model.state_dict()
        assert after.keys() == self.before.keys()
        assert all(torch.equal(t, self.before[name]) or bool(t.isnan().any()) for name, t in after.items())
        return result

    def file(self, kind: str) -> Path:
        return self.folder / f"{kind}-{next(NUMBER)}"

    def read_elsewhere(self, kind: str, path: Path, content: Mapping[str, Tensor]) -> None:
        """One file in twelve is kept for another process; all others are gone once they were read here."""
        if next(NUMBER) % 12 == 0:
            self.elsewhere.append((kind, str(path), digest(content)))
        else:
            path.unlink()

    @invariant()
    def what_is_pruned_is_zero(self) -> None:
        zero_where(self.masks, recount.named(self.model))

    # ------------------------------------------------------------------------------------------- cuts without training

    @rule(amount=AMOUNTS, criterion=CRITERIA, unit=UNIT, scope=SCOPE, seed=SEED, narrow=RARELY)
    def prune(self, amount: Any, criterion: str, unit: str, scope: str, seed: int, narrow: bool) -> None:
        LOOKING.rest(base=self.masks)
        wide: dict[str, Any] = {} if narrow else self.wide
        choice: dict[str, Any] = {"unit": unit, "scope": scope, "data": self.data, "seed": seed, **FREELY, **wide}
        if self.run is None:
            choice["masks"] = self.masks or None
        made = self.call("prune", lab.prune, self.subject, amount, Looks(criterion), **choice)
        before = self.held_by(lab.prunable(self.model, **wide))
        if criterion in BY_WEIGHTS and not (any(wide.values()) and criterion.startswith("filter")):
            known = self.masks.keys() <= before.keys()
            assert (made is not None) == (known and can_be_cut(before, amount, unit, scope))
        if made is None:
            return
        model, masks = made
        assert masks.keys() == before.keys()
        check_choice(before, masks, amount, unit, scope)
        weights, old = recount.named(model), recount.named(self.model)
        if self.net != "overlapping":
            for name, weight in weights.items():
                expected = torch.where(masks[name], old[name], 0) if name in masks else old[name]
                assert torch.equal(weight, expected)
        if criterion == "magnitude" and scope == "global" and not isinstance(amount, dict):
            assert masks.fingerprint == by_hand(old, before, amount, unit).fingerprint
        self.hold(model, {**self.masks, **masks})

    @precondition(lambda self: self.last != "prune cast")
    @rule(dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float64]), unit=UNIT, scope=SCOPE)
    def prune_in_another_precision(self, dtype: torch.dtype, unit: str, scope: str) -> None:
        LOOKING.rest(base=self.masks)
        cast = copy.deepcopy(self.model).to(dtype)
        choice: dict[str, Any] = {"unit": unit, "scope": scope, "masks": self.masks or None, **FREELY, **self.wide}
        made = self.call("prune cast", lab.prune, cast, 0.9, **choice)
        before = self.held_by(lab.prunable(cast, **self.wide))
        known = self.masks.keys() <= before.keys()
        assert (made is not None) == (known and can_be_cut(before, 0.9, unit, scope))
        if made:
            check_choice(before, made[1], 0.9, unit, scope)
            zero_where(made[1], recount.named(made[0]))
            assert all(p.dtype == dtype for p in made[0].parameters())

    @precondition(lambda self: self.masks and self.last != "grow")
    @rule(share=st.sampled_from([0.0, 0.3, 1.0]), by_layer=st.booleans(), seed=SEED)
    def grow(self, share: float, by_layer: bool, seed: int) -> None:
        source = torch.Generator().manual_seed(seed)
        scores = {name: torch.rand(mask.shape, generator=source) for name, mask in self.masks.items()}
        dead = {name: int((~mask).sum()) for name, mask in self.masks.items()}
        counts: Any = {n: int(share * d) for n, d in dead.items()} if by_layer else int(share * sum(dead.values()))
        grown = self.call("grow", lab.grow, self.masks, scores, counts)
        assert grown is not None
        assert (self.masks & ~grown).kept == 0
        new = grown & ~self.masks
        assert new.kept_by_layer == counts if by_layer else new.kept == counts
        flat = {n: (torch.cat([s.flatten() for s in scores.values()])) for n in ("all",)}["all"]
        at = torch.cat([mask.flatten() for mask in new.values()])
        out = torch.cat([(~mask).flatten() for mask in grown.values()])
        if not by_layer and at.any() and out.any():
            assert float(flat[at].min()) >= float(flat[out].max())
        self.hold(self.model, grown)

    # ------------------------------------------------------------------------------------------------------- training

    @rule(plan=st.sampled_from(BASIC), amount=AMOUNTS, unit=UNIT, scope=SCOPE, criterion=CRITERIA, options=OPTIONS)
    def fit(self, plan: str, amount: Any, unit: str, scope: str, criterion: str, options: Any) -> None:
        self.train("fit", plan, amount, unit, scope, criterion, options)

    @rule(plan=PLAN, amount=AMOUNTS, unit=UNIT, scope=SCOPE, options=OPTIONS, back=st.integers(0, 2), inference=RARELY)
    def try_a_method(
        self, plan: str, amount: Any, unit: str, scope: str, options: Any, back: int, inference: bool
    ) -> None:
        """From here, or from one of the last snapshots for one epoch more than its run had."""
        if back and self.shots:
            start, before = self.shots[-min(back, len(self.shots))]
            length = {"batch_size": before["batch_size"], "epochs": before["epochs"] + 1}
            optimizer = {"optimizer": before.get("optimizer", "adam")} if back == 1 else {}
            self.run = None
            self.train(
                "restart", plan, amount, unit, scope, "magnitude", {**options, **optimizer, **length}, start=start
            )
        else:
            self.train("method", plan, amount, unit, scope, "magnitude", options, inference=inference)

    def train(
        self, what: str, plan: str, amount: Any, unit: str, scope: str, criterion: str, options: Any, **more: Any
    ) -> lab.Run | None:
        inference, start = more.pop("inference", False), more.get("start")
        if start is None and self.run is None:
            more["masks"] = self.masks or None
        base = start.masks if start else self.masks
        LOOKING.rest(base=base, renews=plan == "renewed")
        path = self.file("record")
        chosen: Any = {
            "progress": False,
            "loss": looking_loss,
            "record": path,
            **FREELY,
            **self.wide,
            **options,
            **more,
        }

        def trained() -> lab.Run:
            acting = PLANS[plan](amount, unit, scope, Looks(criterion))
            with torch.inference_mode(inference):
                return lab.fit(self.subject, self.data, Watches(), *acting, **chosen)

        run: lab.Run | None = self.call(what, trained)
        LOOKING.rest()
        if run is None:
            return None
        TALLY[plan, run.status in ("done", "stopped", "target_missed")] += 1
        if plan not in GROWING:
            assert all(not bool((run.masks[name] & ~mask).any()) for name, mask in base.items())
        steps = start.spent if start else self.trained if self.run else 0
        check_record(run, path, steps, start.step if start else 0)
        self.trained = steps + run.result.steps["own"]
        self.read_elsewhere("record", path, dict(run.model.named_parameters()))
        self.shots = [*self.shots[-1:], (self.checked_snapshot(run), options)]
        self.hold(run.model, run.masks, run)
        return run

    def checked_snapshot(self, run: lab.Run) -> lab.Snapshot:
        shot, path = run.snapshot(), self.file("snapshot")
        shot.save(path)
        again = lab.Snapshot.load(path)
        assert digest(again.weights | again.buffers) == digest(shot.weights | shot.buffers)
        assert (again.masks.fingerprint, again.step) == (run.masks.fingerprint, run.step)
        self.read_elsewhere("snapshot", path, shot.weights | shot.buffers)
        return again

    @rule(plan=PLAN, unit=UNIT, scope=SCOPE, options=OPTIONS, steps=st.integers(1, 4), other=st.booleans())
    def interrupt_and_resume(self, plan: str, unit: str, scope: str, options: Any, steps: int, other: bool) -> None:
        LOOKING.rest()
        path = self.file("checkpoint")
        options = {
            "progress": False,
            "masks": self.masks or None,
            "every_steps": 1,
            **FREELY,
            **self.wide,
            **options,
            "epochs": 2,
            "batch_size": 13,
        }

        def trained(sign: float, **more: Any) -> lab.Run:
            acting = PLANS[plan](0.5, unit, scope, Stubborn(sign))
            return lab.fit(self.model, self.data, *acting, **{**options, **more})

        def stop(run: lab.Run) -> None:
            if run.step >= steps:
                run.interrupt()

        if self.call("interrupted", trained, 1.0, checkpoint=path, progress=stop) is None:
            return
        known = any(vars(x).get("criterion") == "movement" for x in PLANS[plan](0.5, unit, scope, "movement"))
        if other and known and path.exists():
            with pytest.raises(OWN, match=r"belongs to another run|give it at most"):  # or its cut leaves too few
                trained(-1.0, checkpoint=path)
        resumed, whole = trained(1.0, checkpoint=path), trained(1.0)
        assert digest(resumed.model.state_dict()) == digest(whole.model.state_dict())
        assert resumed.masks.fingerprint == whole.masks.fingerprint
        ours, theirs = (replace(run.result, times={}, environment={}, origin={}) for run in (resumed, whole))
        assert json.dumps(asdict(ours)) == json.dumps(asdict(theirs))
        for file in self.folder.glob(f"*{path.name}*"):  # and the checkpoint before it
            file.unlink()
        self.hold(whole.model, whole.masks)

    # ------------------------------------------------------------------------------------------ files and other forms

    @precondition(lambda self: self.last != "store")
    @rule(values=st.sampled_from(["exact", "fp32", "codebook", "fp16", "bf16"]), entropy=st.sampled_from([None, "bz2"]))
    def store(self, values: str, entropy: str | None) -> None:
        path = self.file("sparse")
        assert lab.storage.sizes(self.subject)["parameters"] == sum(
            p.numel() for p in recount.named(self.model).values()
        )
        sizes = self.call("store", lab.storage.save, self.subject, path, values=values, entropy=entropy)
        if sizes is None:
            return
        assert sizes["sparse_bytes"] == path.stat().st_size
        state = {name: t.detach() for name, t in self.model.state_dict().items()}
        once = {t.data_ptr(): n for n, t in state.items()}  # tied tensors are stored once
        matrices = [t for n, t in state.items() if n in once.values() and t.is_floating_point() and t.ndim > 1]
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(values, torch.float32)
        rounded = {n: t.to(dtype).to(t.dtype) if t.is_floating_point() and t.ndim > 1 else t for n, t in state.items()}
        assert sizes["weights"] == sum(t.numel() for t in matrices)
        assert sizes["rounded"] == sum(int((rounded[n] != state[n]).sum()) for n in once.values())
        loaded = lab.storage.load(path)
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[n], t) and loaded[n].dtype == t.dtype for n, t in rounded.items())
        zero_where(self.masks, loaded)
        fresh = lab.storage.load(path, copy.deepcopy(self.model))
        self.read_elsewhere("sparse", path, loaded)
        self.hold(fresh, self.masks)

    @precondition(lambda self: self.last != "to torch")
    @rule(only=st.sampled_from(["all", "first", "theirs"]), through_file=st.booleans(), seed=SEED)
    def through_torch(self, only: str, through_file: bool, seed: int) -> None:
        masks = self.masks or lab.Masks.full(lab.prunable(self.model))
        masks = lab.Masks(dict(itertools.islice(masks.items(), 1))) if only == "first" else masks
        theirs = copy.deepcopy(self.model)
        if only == "theirs":
            name = next(iter(lab.prunable(theirs)))
            layer, _, parameter = name.rpartition(".")
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                torch_prune.random_unstructured(theirs.get_submodule(layer), parameter, 0.4)
            self.last = "to torch"
        elif self.call("to torch", masks.to_torch, theirs) is None:
            return
        expected = logits(theirs, self.x)
        state = theirs.state_dict()
        if through_file:
            with io.BytesIO() as file:
                torch.save(state, file)
                file.seek(0)
                state = torch.load(file, weights_only=True)
        plain, again = lab.Masks.from_torch(state)
        assert plain.keys() == self.model.state_dict().keys()
        if only != "theirs":
            assert again.fingerprint == masks.fingerprint
        fresh = copy.deepcopy(self.model)
        fresh.load_state_dict(plain)
        if self.net not in ("twice", "overlapping"):  # torch prunes one of the two modules that share a weight
            assert torch.allclose(
                logits(fresh, self.x), expected, atol=1e-6
            )  # recurrent kernels differ in the last bit
        self.hold(fresh, again)

    @precondition(lambda self: not self.fixed)
    @rule(
        amount=st.sampled_from([0, 0.2, 0.5, 0.9]),
        criterion=st.sampled_from(["filter_l1", "filter_l2", "taylor", "random"]),
        scope=st.sampled_from(["global", "layer", "raw"]),
        take_out=st.booleans(),
    )
    def remove_channels(self, amount: float, criterion: str, scope: str, take_out: bool) -> None:
        made = self.call("channels", lab.structured.prune, self.subject, self.data, amount, criterion, scope=scope)
        if made is None:
            self.fixed = True
            return
        model, masks = made
        before = self.masks if self.run else lab.Masks.full(masks)
        assert (lab.Masks(masks) & ~lab.Masks({**masks, **before})).kept == 0
        zero_where(masks, recount.named(model))
        shrunk = self.call("shrink", lab.structured.shrink, model, self.data, masks) if take_out else None
        if shrunk is None:
            self.hold(model, {**self.masks, **masks} if self.run else masks)
            return
        small = shrunk.model
        assert torch.allclose(logits(small, self.x), logits(model, self.x), rtol=1e-4, atol=1e-5)
        assert shrunk.parameters == sum(p.numel() for p in recount.named(small).values())
        assert shrunk.before == sum(p.numel() for p in recount.named(model).values())
        left = shrunk.take(masks)
        assert all(left[name].shape == p.shape for name, p in recount.named(small).items() if name in left)
        self.shots.clear()
        self.hold(small, left)


# ---------------------------------------------------------------------------------------------------- the recounts


def logits(model: nn.Module, x: Tensor) -> Tensor:
    training = model.training
    with torch.no_grad():
        found = model.eval()(x)
    model.train(training)
    return found


def digest(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode() + tensors[name].detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def wanted(before: lab.Masks, amount: Any, unit: str) -> dict[str, tuple[int, int]]:
    """By layer, or of all together: how many units are asked for, and how many there are to keep."""
    alive = {name: recount.alive(mask, unit) for name, mask in before.items()}
    if not isinstance(amount, dict):
        total = sum(map(len, alive.values()))
        return {"": (total - int(total * amount + 0.5), sum(int(a.sum()) for a in alive.values()))}
    asked: dict[str, tuple[int, int]] = {}
    for name, units in alive.items():
        shares = [share for pattern, share in amount.items() if fnmatchcase(name, pattern)]
        most = int(units.sum())
        asked[name] = (len(units) - int(len(units) * shares[-1] + 0.5) if shares else most, most)
    return asked


def can_be_cut(before: lab.Masks, amount: Any, unit: str, scope: str) -> bool:
    by_pattern = isinstance(amount, dict)
    if by_pattern and not all(any(fnmatchcase(n, p) for n in before) for p in amount):
        return False
    least = sum(bool(mask.any()) for mask in before.values()) if scope != "global" and not by_pattern else 0
    asked = wanted(before, amount, unit)
    empties = any(keep == 0 and before.get(name, torch.ones(1)).numel() for name, (keep, _) in asked.items())
    return not empties and all(least <= keep <= most for keep, most in asked.values())


def check_choice(before: lab.Masks, masks: lab.Masks, amount: Any, unit: str, scope: str) -> None:
    assert all(not bool((mask & ~before[name]).any()) for name, mask in masks.items())
    left = {name: int(recount.alive(mask, unit).sum()) for name, mask in masks.items()}
    for name, (keep, _) in wanted(before, amount, unit).items():
        assert (left[name] if name else sum(left.values())) == keep
    for name, mask in masks.items():  # a unit goes or stays as a whole
        units, was = recount.alive(mask, unit), before[name]
        leading = {"weight": mask.ndim, "kernel": 2, "channel": 1}[unit]
        whole = units.view(*mask.shape[:leading], *[1] * (mask.ndim - leading)) if mask.ndim > leading else mask
        assert torch.equal(mask, was & whole)
    if scope != "global" and not isinstance(amount, dict):
        assert all(left[name] for name, mask in before.items() if mask.any())


def by_hand(weights: Mapping[str, Tensor], before: lab.Masks, amount: Any, unit: str) -> lab.Masks:
    """The largest mean magnitudes of all units together."""
    leading = {"weight": None, "kernel": 2, "channel": 1}[unit]
    masked = {n: torch.where(mask, weights[n].detach(), 0).abs() for n, mask in before.items()}
    scores = [
        w.flatten() if leading is None or w.ndim <= leading else w.flatten(leading).mean(-1).flatten()
        for w in masked.values()
    ]
    alive = [recount.alive(mask, unit) for mask in before.values()]
    (keep, _) = wanted(before, amount, unit)[""]
    kept = recount.highest(torch.cat(scores), torch.cat(alive), keep).split([len(s) for s in scores])
    made = lab.Masks()
    for (name, mask), units in zip(before.items(), kept, strict=True):
        lead = mask.ndim if leading is None else min(leading, mask.ndim)
        made[name] = mask & units.view(*mask.shape[:lead], *[1] * (mask.ndim - lead))
    return made


def check_record(run: lab.Run, path: Path, steps_before: int, first_step: int) -> None:
    result, parameters, masks = run.result, recount.named(run.model), run.masks
    assert json.loads(json.dumps(asdict(lab.Result.read(path)))) == json.loads(json.dumps(finite(asdict(result))))
    assert repr(run)
    assert run._repr_html_()
    zero_where(masks, parameters)
    layers = [
        {"layer": name, "shape": list(mask.shape), "total": mask.numel(), "kept": sum(mask.flatten().tolist())}
        for name, mask in masks.items()
    ]
    assert result.layers == layers
    empty = [layer["layer"] for layer in layers if not layer["kept"]]
    assert result.collapsed == [name for name in empty if "bias" not in name.rpartition(".")[2]]  # bias_ih_l0, too
    total, kept = (sum(layer[key] for layer in layers) for key in ("total", "kept"))
    every = sum(p.numel() for p in parameters.values())
    assert result.sparsity["weights"] == pytest.approx(1 - kept / total if total else 0)
    assert result.sparsity["all"] == pytest.approx((total - kept) / every)
    assert result.size["parameters"] == result.scope["parameters"] == every
    assert result.size["nonzero"] == sum(int((p != 0).sum()) for p in parameters.values())
    assert result.size["nonzero"] <= every - (total - kept)
    assert (result.scope["weights"], sum(result.scope["left_out"].values())) == (total, every - total)
    check_flops(run)
    own = run.step - first_step
    assert result.steps["own"] == own
    assert result.steps["before"] == steps_before
    images = len(run.data.train)
    per_epoch = images if run.options.batch_size == 1 else -(-images // run.options.batch_size)
    per_epoch -= images % run.options.batch_size == 1 < min(run.options.batch_size, images - 1)
    assert result.steps["planned"] == run.epochs * per_epoch
    assert result.status != "done" or run.step == run.epochs * per_epoch
    assert result.flops["training"] == pytest.approx(3 * result.flops["dense"] * images * own / per_epoch)
    cuts = [(cut["before"], cut["after"]) for cut in result.cuts]
    assert all(a == b for (_, a), (b, _) in itertools.pairwise(cuts))
    assert not cuts or cuts[-1][1] == kept
    for entry in result.history:
        assert sum(entry["kept"].values()) == pytest.approx((1 - entry["sparsity"]) * total)
    bf16 = run.options.precision == "bf16"
    for split in ("val", "test") if result.status != "diverged" else ():
        batches = getattr(run.data, split).batches(1000)
        assert result.accuracy[split]["accuracy"] == pytest.approx(recount.accuracy(run.model, batches, bf16))
    if result.target and result.status in ("done", "stopped"):
        units = sum(int(recount.alive(mask, result.target["unit"]).sum()) for mask in masks.values())
        assert result.status == "stopped" or units <= result.target["kept"]


def check_flops(run: lab.Run) -> None:
    dense, sparse = recount.flops(run.model, next(iter(run.data.val.batches(1)))[0], run.masks)
    assert run.result.flops["dense"] == dense
    assert run.result.flops["sparse"] == pytest.approx(sparse, abs=0.11)


def finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and value - value != 0 else value


# ------------------------------------------------------------------------------------------------------- the tests

ELSEWHERE = """
import hashlib, json, sys
import pruninglab as lab
for kind, path, _ in json.loads(sys.argv[1]):
    if kind == "record":
        lab.Result.read(path)
        print("")
        continue
    shot = lab.Snapshot.load(path) if kind == "snapshot" else None
    tensors = shot.weights | shot.buffers if shot else lab.storage.load(path)
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
    print(found.hexdigest())
"""


def draw(machine: type[Sequences], examples: int, plans: int, **how: Any) -> None:
    """Run the machine; each call has to be answered often enough with a result, and each file read elsewhere."""
    TALLY.clear()
    machine.elsewhere = []
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    chosen = {"stateful_step_count": 6, "deadline": None, "database": None, "suppress_health_check": checks}
    run_state_machine_as_test(machine, settings=settings(max_examples=examples, **chosen, **how))
    asked = {what: (TALLY[what, True], TALLY[what, True] + TALLY[what, False]) for what, _ in TALLY}
    assert asked.keys() >= CALLS
    assert len(asked.keys() & PLANS.keys()) >= plans
    few = {what: counts for what, counts in asked.items() if counts[0] < counts[1] / 8}
    assert not few, f"mostly refused, so that little was checked: {few}"
    command = [sys.executable, "-c", ELSEWHERE, json.dumps(machine.elsewhere)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said == [written if kind != "record" else "" for kind, _, written in machine.elsewhere]


CALLS = {
    *("prune", "prune cast", "fit", "method", "restart", "interrupted"),
    *("store", "to torch", "channels", "shrink", "grow"),
}


def test_whatever_is_called_after_whatever_the_laws_hold(tmp_path: Path) -> None:
    draw(type("Drawn", (Sequences,), {"folder": tmp_path}), 300, 10, derandomize=True)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_laws_hold_over_many_more_sequences(tmp_path: Path, seed: int) -> None:
    machine = hypothesis.seed(seed)(type("Drawn", (Sequences,), {"folder": tmp_path}))
    draw(machine, 1700, len(PLANS) - 2, derandomize=False)


def test_batches_of_one_image_that_a_norm_cannot_take_are_refused() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    with pytest.raises(lab.ConfigError, match="batch_size"):
        lab.fit(net, DATA["images"], epochs=1, batch_size=1, progress=False)


def test_masks_of_a_shrunk_network_say_which_biases_are_zero() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(32, 2), nn.ReLU(), nn.Linear(2, 3))
    masks = lab.Masks.full(lab.prunable(net, biases=True))
    masks["1.weight"][0] = False  # the channel is a constant
    masks["3.bias"][:] = False
    recount.named(net)["1.bias"].data.fill_(1.0)
    shrunk = lab.structured.shrink(net, DATA["images"], masks)
    assert shrunk.removed == 1
    zero_where(shrunk.take(masks), recount.named(shrunk.model))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_obd_of_recurrent_layers_is_made_of_single_samples(kind: Callable[..., nn.RNNBase]) -> None:
    net, (x, y) = Recurrent(kind), next(iter(DATA["images"].train.batches([torch.arange(8)])))
    scores = OBD("fisher")(net, iter([(x, y)]))
    for name, weight in lab.prunable(net).items():
        each = [
            torch.autograd.grad(F.cross_entropy(net(a[None]), b[None]), weight)[0] for a, b in zip(x, y, strict=True)
        ]
        curvature = torch.stack(each).square().mean(0)
        assert torch.allclose(scores[name], 0.5 * curvature * weight.detach().square(), rtol=1e-3, atol=1e-9)
    assert lab.prune(net, 0.5, "obd", data=DATA["images"])[1].sparsity == pytest.approx(0.5, abs=0.01)
