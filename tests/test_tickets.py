"""Tickets: what a rewind restores, the masks of the controls, and that the ticket matters."""

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import pruninglab as lab
from pruninglab import identity
from pruninglab.masks import scattered
from pruninglab.recipes import tickets
from pruninglab.recipes.tickets import redrawn
from pruninglab.train.run import optimizer_state


@dataclass
class Looks(lab.Method):
    """Remembers what the first step starts from."""

    model: dict[str, Tensor] = field(init=False)
    optimizer: dict[str, dict[str, Tensor]] = field(init=False)
    lr: float = field(init=False)

    def on_grad(self, run):
        if run.step == run.first_step:
            named = [*run.model.named_parameters(), *run.model.named_buffers()]
            self.model = {name: tensor.detach().clone() for name, tensor in named}
            self.optimizer = optimizer_state(run)
            self.lr = run.optimizer.param_groups[0]["lr"]


@pytest.fixture(scope="module")
def data() -> lab.Data:
    return lab.load("digits", train=300, test=60, size=14)


@pytest.fixture(scope="module")
def model(data) -> nn.Module:
    def conv_bn(shape, classes):
        conv, dense = [nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6)], [nn.Linear(864, 20), nn.ReLU(), nn.Linear(20, classes)]
        return nn.Sequential(*conv, nn.Flatten(), *dense)

    return lab.build(conv_bn, data, seed=3)


def go(model, data, **options):
    given = {
        "sparsity": 0.8,
        "epochs": 3,
        "rounds": 2,
        "batch_size": 50,
        "progress": False,
        "collapse": "allow",
    } | options
    return tickets(model, data, **given)


SGD = {"optimizer": "sgd", "lr": 0.05}


@pytest.mark.parametrize("options", [SGD, {"optimizer": "adam"}], ids=["sgd", "adam"])
def test_a_late_rewind_is_bit_for_bit(model, data, options):
    """Weights, BatchNorm's buffers, momentum and rate at the first step of a ticket are those of the dense run then."""
    made = go(model, data, step=7, **options)
    assert [trial.run.first_step for trial in made] == [0] + [7] * 2 + [0] + [7] * 2
    # an independent way to the same step: one uninterrupted run, looked at
    until = {"epochs": 3, "batch_size": 50, "progress": False, "collapse": "allow", **options}
    early = lab.fit(model, data, StopsAt(7), **until)
    saved, remembered = early.snapshot(), optimizer_state(early)
    seen = lab.fit(model, data, Looks(), start=saved, masks=made["ticket"].masks, **until)
    looked = seen.methods[0]
    assert isinstance(looked, Looks)
    assert looked.model.keys() == (saved.weights | saved.buffers).keys()
    for name, tensor in (saved.weights | saved.buffers).items():
        kept = made["ticket"].masks.get(name, torch.ones_like(tensor, dtype=torch.bool))
        moved = name.startswith("1.") and name in saved.buffers  # the forward pass before the look has moved them
        assert moved or torch.equal(looked.model[name], torch.where(kept, tensor, 0))
    assert looked.optimizer.keys() == remembered.keys()
    assert all(torch.equal(looked.optimizer[n][k], v) for n, state in remembered.items() for k, v in state.items())
    assert looked.lr == pytest.approx(options.get("lr", 1e-3) * lab.CosineLR()(7 / early.steps), rel=1e-12)

    # the records prove it: they hold hashes of what was there after loading, buffers included
    of_saved = identity.tensor_hash(saved.weights | saved.buffers)
    of_optimizer = identity.tensor_hash({f"{n}/{k}": v for n, s in remembered.items() for k, v in s.items()})
    for method in ("ticket", "random mask", "one-shot"):
        start = made[method].result.origin
        assert (start["weights"], start["optimizer"], start["lr"]) == (of_saved, of_optimizer, looked.lr)
        assert start["from_step"] == 7
    assert made["reinitialised"].result.origin["optimizer"] is None


def test_buffers_are_rewound_too(model, data):
    """With the rate at 0 nothing but BatchNorm's statistics moves, and each training starts from the same ones."""
    start = lab.Snapshot.of(model)
    start.buffers["1.running_mean"] += 3.0
    run = lab.fit(model, data, start=start, epochs=0, progress=False)
    assert torch.equal(run.model.get_buffer("1.running_mean"), start.buffers["1.running_mean"])
    assert run.origin["weights"] != lab.fit(model, data, start=lab.Snapshot.of(model), epochs=0).origin["weights"]


def test_going_on_from_a_snapshot_is_the_uninterrupted_run(model, data):
    whole = lab.fit(model, data, epochs=3, batch_size=50, progress=False, **SGD)
    assert identity.tensor_hash(whole.model.state_dict()) == identity.tensor_hash(
        go(model, data, step=7, rounds=1, controls=(), **SGD)["dense"].model.state_dict()
    )


def test_a_reset_is_to_the_initial_weights(model, data):
    made = go(model, data)
    initial = identity.tensor_hash(dict(model.named_parameters()) | dict(model.named_buffers()))
    starts = {trial.method: trial.run.result.origin for trial in made}
    assert {starts[method]["weights"] for method in ("dense", "ticket", "random mask", "one-shot")} == {initial}
    assert starts["reinitialised"]["weights"] != initial
    assert len({trial.run.step for trial in made}) == 1  # every training has as many steps


def test_rewinding_the_rate_keeps_the_trained_weights(model, data):
    made = go(model, data, rewind="learning_rate", step=7)
    dense, first, second = [trial.run for trial in made][:3]
    hashes = [identity.tensor_hash(dict(r.model.state_dict())) for r in (dense, first)]
    assert [first.origin["weights"], second.origin["weights"]] == hashes
    assert first.origin["lr"] == pytest.approx(1e-3 * lab.CosineLR()(7 / dense.steps))
    assert first.first_step == 7


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_shares_are_exact_and_masks_only_shrink(model, data, scope):
    made = go(model, data, rounds=3, scope=scope, controls=("random mask", "one-shot", "gradual"), epochs=1)
    masks = [trial.run.masks for trial in made if trial.method in ("dense", "ticket")]
    total = masks[0].total
    assert [m.kept for m in masks] == [total - int(total * (1 - 0.2 ** (r / 3)) + 0.5) for r in range(4)]
    assert all((later & earlier).kept == later.kept for earlier, later in pairwise(masks))
    ticket, random, once = made["ticket"].masks, made["random mask"].masks, made["one-shot"].masks
    assert ticket.kept_by_layer == random.kept_by_layer == made["gradual"].masks.kept_by_layer
    assert once.kept == ticket.kept
    assert not torch.equal(ticket["3.weight"], random["3.weight"])
    if scope == "layer":  # the last layer loses half the share: hidden 0.585² of 0.8 left each round
        assert once.kept_by_layer == ticket.kept_by_layer
        hidden, last = ticket.kept_by_layer["3.weight"] / 17280, ticket.kept_by_layer["5.weight"] / 200
        share = 1 - 0.2 ** (1 / 3)
        assert last / hidden == pytest.approx(((1 - share / 2) / (1 - share)) ** 3, rel=0.02)


def test_new_weights_have_the_old_distribution(model):
    new = redrawn(model, seed=1)
    for (name, old), weight in zip(model.named_parameters(), new.parameters(), strict=True):
        assert torch.equal(weight.sort().values if weight.ndim == 1 else weight.flatten().sort().values, sorted_(old))
        assert name.startswith("1.") or not torch.equal(weight, old)
    assert torch.equal(next(redrawn(model, seed=1).parameters()), next(new.parameters()))
    assert not torch.equal(next(redrawn(model, seed=2).parameters()), next(new.parameters()))


def sorted_(tensor: Tensor) -> Tensor:
    return tensor.detach().flatten().sort().values


def test_scattered_masks_keep_whole_units():
    masks = lab.Masks(a=torch.tensor([[[1, 1], [0, 0]], [[0, 0], [0, 0]], [[0, 1], [1, 1]]]).bool())
    assert scattered(masks, 0).kept == 5
    channels = scattered(lab.Masks(a=torch.eye(4)[:, :1].expand(4, 3).bool()), 0, "channel")["a"]
    assert sorted(channels.sum(1).tolist()) == [0, 0, 0, 3]
    biases = scattered(lab.Masks(b=torch.tensor([True, False, False])), 0, "kernel")["b"]
    assert biases.shape == (3,)


def test_costs_count_what_had_to_come_before(model, data):
    made = go(model, data, step=7, controls=(*tickets_controls(), "gradual"))
    table = made.table().set_index("method")
    steps = 3 * 6  # 270 images in batches of 50, three epochs
    searched = {"reinitialised": 3 * steps - 7, "random mask": steps, "one-shot": 2 * steps - 7, "gradual": steps}
    searched |= {"dense": steps}
    assert {method: table.loc[method, "steps_in_all"] for method in searched} == searched
    assert table.loc["ticket", "steps_in_all"].tolist() == [2 * steps - 7, 3 * steps - 14]
    assert table.loc["gradual", "gflops_kept"] != table.loc["gradual", "gflops_kept"]
    flops = made["dense"].result.flops["dense"]
    assert table.loc["random mask", "gflops_in_all"] == pytest.approx(3 * flops * 270 * 3 / 1e9)
    html = made._repr_html_()
    assert html.count("<tr>") == 1 + len(made.made)
    assert html.count("done") == len(made.made)
    assert "training GFLOPs" in html


def test_a_global_search_is_charged_to_all_that_need_its_counts(model, data):
    made = go(model, data, scope="global", controls=(*tickets_controls(), "gradual"))
    steps = {row["method"]: row["steps_in_all"] for row in made.table().to_dict("records")}
    each = 3 * 6
    assert steps == {
        "dense": each, "ticket": 3 * each, "reinitialised": 3 * each, "random mask": 3 * each,
        "one-shot": 2 * each, "gradual": 3 * each,
    }  # fmt: skip


def tickets_controls() -> tuple[str, ...]:
    return ("reinitialised", "random mask", "one-shot")


def test_a_folder_is_gone_on_from(model, data, tmp_path):
    first = go(model, data, step=4, folder=tmp_path, compare="each", controls=("random mask",))
    names = sorted(p.stem for p in tmp_path.glob("*.json"))
    rounds = [f"round-0{r}-{method}" for r in (1, 2) for method in ("random-mask", "ticket")]
    assert names == ["dense", "early", *rounds]
    times = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.safetensors")}
    again = go(model, data, step=4, folder=tmp_path, compare="each", controls=("random mask",))
    assert times == {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.safetensors")}  # nothing was trained
    columns = ["method", "test_accuracy", "steps_in_all", "start"]
    assert first.table()[columns].equals(again.table()[columns])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"masks": {}}, "sets masks by itself"),
        ({"rewind": "bias"}, "one of 'weights', 'learning_rate'"),
        ({"controls": ["dense"]}, "'reinitialised', 'random mask'"),
        ({"rounds": 0}, "of at least 1"),
        ({"step": 1000}, "over after 18 steps"),
        ({"step": 18}, "over after 18 steps"),
        ({"sparsity": 1.5}, "1.5"),
        ({"sparsity": {"*": 0.5}}, "expected a finite number|expected a number"),
        ({"sparsity": 0.999999}, "would cut all"),
        ({"criterion": "magnitud"}, "magnitude"),
    ],
)
def test_what_cannot_be_is_said_before_any_training(model, data, options, said, tmp_path):
    with pytest.raises(lab.ConfigError, match=said):
        go(model, data, folder=tmp_path, **options)
    assert not any(tmp_path.glob("*.json"))


def test_a_trained_run_holds_no_ticket(model, data):
    with pytest.raises(lab.ConfigError, match="untrained"):
        go(lab.fit(model, data, epochs=0, progress=False), data)


@pytest.mark.parametrize("seeds", [(0,), pytest.param((1, 2, 3, 4), marks=pytest.mark.slow)], ids=str)
def test_the_ticket_beats_a_random_mask_of_the_same_shares(seeds):
    """Nine in ten weights cut, each training of 65 steps: by so far that no seed may disagree."""
    won = []
    for seed in seeds:
        data = lab.load("digits", seed=seed)
        model = lab.build("lenet300", data, seed=seed)
        settings = {
            "epochs": 5,
            "rounds": 3,
            "controls": ["random mask"],
            "seed": seed,
            "progress": False,
            "collapse": "allow",
        }
        made = tickets(model, data, 0.9, **settings)
        ticket, random = made["ticket"], made["random mask"]
        assert ticket.masks.kept_by_layer == random.masks.kept_by_layer
        assert ticket.step == random.step == 65
        won.append(ticket.result.accuracy["test"]["accuracy"] - random.result.accuracy["test"]["accuracy"])
    assert min(won) > 0


@dataclass
class StopsAt(lab.Method):
    at: int

    def on_step(self, run):
        if run.step == self.at:
            run.stop("there")


def test_a_random_ticket_follows_the_seed(data):
    """The global generator, which is elsewhere at each call, decides nothing."""
    model = lab.build("lenet300", data, seed=0)

    def found(seed: int) -> list[str]:
        made = tickets(
            model, data, 0.5, rounds=2, epochs=1, criterion="random", controls=["one-shot"], seed=seed, progress=False
        )
        return [trial.run.masks.fingerprint for trial in made]

    assert found(0) == found(0) != found(1)
