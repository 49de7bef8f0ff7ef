"""The trainer's promises: the same bits, masks that hold, choices on validation, clear ends."""

import copy
import math
import os
import pickle
import signal
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest
import torch
from test_contract import METHODS
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import pruninglab as lab
from pruninglab import identity, randomness
from pruninglab.methods import Gradual, OneShot, SynFlow

QUIET: dict[str, Any] = {"progress": False, "collapse": "allow", "seed": 0}


@pytest.fixture(scope="module")
def blobs() -> lab.Data:
    """Four clusters in ten dimensions: an epoch takes milliseconds."""
    source = torch.Generator().manual_seed(0)
    centres = 2.0 * torch.randn(4, 10, generator=source)
    y = torch.arange(400) % 4
    x = centres[y] + torch.randn(400, 10, generator=source)
    return lab.wrap(TensorDataset(x[:300], y[:300]), TensorDataset(x[300:], y[300:]), val=0.2, name="blobs")


def mlp(dropout: float = 0.0, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 4))


def method(run: lab.Run, number: int = 0) -> Any:
    """The run's own copy, with the state that it made."""
    return run.methods[number]


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


# -- the same bits --------------------------------------------------------------------------------------------------


def test_same_seed_same_bits_same_record(blobs):
    one, two = (lab.fit(mlp(0.3), blobs, Gradual(lab.Cubic(0.8)), epochs=3, **QUIET) for _ in range(2))
    assert equal(one.model, two.model)
    assert one.masks.fingerprint == two.masks.fingerprint
    records = [{k: v for k, v in vars(run.result).items() if k != "times"} for run in (one, two)]
    assert records[0] == records[1]


def test_another_seed_is_another_run(blobs):
    one = lab.fit(mlp(), blobs, epochs=1, progress=False, seed=0)
    two = lab.fit(mlp(), blobs, epochs=1, progress=False, seed=1)
    assert not equal(one.model, two.model)


def test_the_global_generator_is_neither_read_nor_moved(blobs):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = lab.fit(mlp(0.5), blobs, OneShot(0.5, "random"), epochs=1, **QUIET)
    torch.manual_seed(1)
    torch.rand(1000)
    two = lab.fit(mlp(0.5), blobs, OneShot(0.5, "random"), epochs=1, **QUIET)
    mlp()  # moves it again; what counts is that the two runs are equal and the first left it alone
    assert equal(one.model, two.model)
    torch.manual_seed(1)
    lab.fit(nn.Sequential(nn.Linear(10, 4), nn.Dropout()), blobs, epochs=0, **QUIET)
    torch.manual_seed(1)
    assert torch.equal(before, torch.get_rng_state())


def test_a_thread_that_draws_cannot_disturb_dropout(blobs):
    model = mlp(0.5)
    quiet = lab.fit(model, blobs, epochs=4, **QUIET)
    done = threading.Event()

    def hammer() -> None:
        while not done.is_set():
            torch.rand(10)

    thread = threading.Thread(target=hammer)
    thread.start()
    try:
        disturbed = lab.fit(model, blobs, epochs=4, **QUIET)
    finally:
        done.set()
        thread.join()
    assert equal(quiet.model, disturbed.model)


def test_it_trains_as_a_plain_loop_does(blobs):
    """Against torch's own idiom, the same batches given."""
    model = mlp()
    run = lab.fit(
        model,
        blobs,
        epochs=2,
        batch_size=60,
        optimizer="sgd",
        lr=0.1,
        weight_decay=1e-3,
        lr_schedule="constant",
        **QUIET,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    for epoch in range(2):
        order = torch.randperm(240, generator=randomness.generator(0, "order", epoch))
        for x, y in blobs.train.batches(order.split(60)):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    for ours, theirs in zip(run.model.parameters(), model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


# -- masks hold -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_pruned_weights_stay_exactly_zero_under_momentum_and_decay(blobs, optimizer):
    dense = lab.fit(mlp(), blobs, epochs=1, **QUIET)
    run = lab.fit(dense, blobs, OneShot(0.9), epochs=2, optimizer=optimizer, weight_decay=0.1, **QUIET)
    again = lab.fit(run, blobs, epochs=2, optimizer=optimizer, weight_decay=0.1, **QUIET)
    for name, mask in run.masks.items():
        assert torch.equal(again.model.get_parameter(name) != 0, mask)
    assert again.masks.fingerprint == run.masks.fingerprint


def test_what_comes_out_is_plain_pytorch(blobs):
    model = mlp()
    run = lab.fit(model, blobs, Gradual(lab.Cubic(0.9)), epochs=2, **QUIET)
    assert list(run.model.state_dict()) == list(model.state_dict())
    assert not nn.utils.parametrize.is_parametrized(run.model)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(run.model)))  # noqa: S301
    fresh = mlp(seed=5)
    fresh.load_state_dict(run.model.state_dict())
    assert equal(copied, run.model)
    assert equal(fresh, run.model)
    assert type(run.model) is nn.Sequential
    assert all(p.is_contiguous() for p in run.model.parameters())


def test_the_model_passed_in_is_left_alone_unless_inplace(blobs):
    model = mlp()
    before = copy.deepcopy(model)
    run = lab.fit(model, blobs, OneShot(0.5), epochs=1, **QUIET)
    assert equal(model, before)
    assert run.model is not model
    assert lab.fit(model, blobs, OneShot(0.5), epochs=1, inplace=True, **QUIET).model is model
    assert not equal(model, before)


def test_assigning_masks_cuts_at_once_and_never_revives(blobs):
    @dataclass
    class Twice(lab.Method):
        seen: list = field(init=False)

        def on_start(self, run):
            first = {n: torch.arange(w.numel()).view(w.shape) % 2 == 0 for n, w in run.weights.items()}
            run.masks = first
            self.seen = [run.masks.kept, int(run.weights["0.weight"].count_nonzero())]
            run.masks = {n: ~m for n, m in first.items()}
            self.seen.append(run.masks.kept)

    run = lab.fit(mlp(), blobs, Twice(), epochs=0, **QUIET)
    assert method(run).seen == [224, 160, 0]
    assert [c.after for c in run.cuts] == [224, 0]
    assert run.last_cut == run.cuts[-1]


def test_grown_weights_start_at_zero_and_so_does_their_optimizer_state(blobs):
    @dataclass
    class Regrow(lab.Method):
        moments: list = field(init=False)

        def on_start(self, run):
            self.moments = []
            run.cut("magnitude", 0.5)

        def on_step(self, run):
            if run.step == 5:
                dead = ~run.masks["0.weight"]
                before = run.optimizer.state[run.weights["0.weight"]]["exp_avg"][dead].abs().sum().item()
                revived = run.grow(lab.Masks.full(run.weights))
                after = run.optimizer.state[run.weights["0.weight"]]["exp_avg"][dead].abs().sum().item()
                self.moments = [before > 0, after, revived, run.weights["0.weight"][dead].abs().sum().item()]

    run = lab.fit(mlp(), blobs, Regrow(), epochs=3, batch_size=60, **QUIET)
    assert method(run).moments == [True, 0.0, 224, 0.0]
    assert run.masks.sparsity == 0
    assert run.cuts[-1].revived == 224
    assert int((run.model.get_parameter("0.weight") == 0).sum()) == 0


def test_reactivation_brings_back_what_scores_above_a_kept_weight(blobs):
    settings = {"epochs": 20, "lr": 0.05, "weight_decay": 0.3, **QUIET}
    without, with_ = (
        lab.fit(mlp(), blobs, Gradual(lab.Linear(0.9), end=1.0, reactivate=r), **settings) for r in (False, True)
    )
    assert method(with_).revived > 0 == method(without).revived
    assert sum(cut.revived for cut in with_.cuts) == method(with_).revived
    assert with_.masks.kept == without.masks.kept
    assert with_.masks.kept == sum(int((w != 0).sum()) for w in with_.weights.values())


def test_a_reactivated_weight_comes_back_with_the_value_it_had(blobs):
    @dataclass
    class Fade(lab.Method):
        """Between two cuts, make every kept weight smaller than the pruned ones were."""

        def on_step(self, run):
            if run.step == 3:
                for name, w in run.weights.items():
                    w.data.mul_(torch.where(run.masks[name], 1e-3, 1.0))

    model = mlp()
    gradual = Gradual(lab.Constant(0.5), begin=0.25, end=0.5, cuts=1, reactivate=True)
    run = lab.fit(model, blobs, Fade(), gradual, epochs=4, batch_size=120, lr=0.0, **QUIET)
    smaller = torch.cat([w.abs().flatten() for w in lab.prunable(model).values()]).kthvalue(224).values
    for name, w in lab.prunable(model).items():
        expected = torch.where(w.abs() <= smaller, w, 0.0)
        assert torch.equal(run.model.get_parameter(name), expected)
    assert method(run, 1).revived == 224


def test_a_hook_that_replaces_the_data_of_a_weight_does_not_lose_the_mask(blobs):
    @dataclass
    class Replace(lab.Method):
        def on_step(self, run):
            for w in run.weights.values():
                w.data = w.data * 0.99

    run = lab.fit(mlp(), blobs, OneShot(0.5), Replace(), epochs=2, **QUIET)
    assert all(not run.model.get_parameter(n)[~m].any() for n, m in run.masks.items())
    assert run.history[-1]["val_accuracy"] == run.result.accuracy["val"]["accuracy"]


def test_reactivation_never_revives_what_was_pruned_before_the_run(blobs):
    model, masks = lab.prune(mlp(), 0.8, collapse="allow")
    run = lab.fit(model, blobs, Gradual(lab.Cubic(0.9), reactivate=True), masks=masks, epochs=4, **QUIET)
    assert all(h["sparsity"] >= masks.sparsity for h in run.history)
    assert all((run.masks[n] <= masks[n]).all() for n in masks)


def test_a_layer_made_in_on_start_is_trained(blobs):
    @dataclass
    class Renew(lab.Method):
        before: torch.Tensor = field(init=False)

        def on_start(self, run):
            run.model.set_submodule("0", nn.Linear(10, 32))
            self.before = run.model.get_parameter("0.weight").detach().clone()

    run = lab.fit(mlp(), blobs, Renew(), epochs=2, **QUIET)
    assert not torch.equal(method(run).before, run.model.get_parameter("0.weight"))


def test_frozen_layers_stay_as_their_owner_set_them(blobs):
    model = nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    model.get_submodule("1").eval()
    run = lab.fit(model, blobs, epochs=2, **QUIET)
    assert torch.equal(run.model.get_buffer("1.running_mean"), model.get_buffer("1.running_mean"))
    again = lab.fit(run.model, blobs, epochs=1, **QUIET)  # a whole model in eval mode means: train it
    assert not torch.equal(again.model.get_buffer("1.running_mean"), model.get_buffer("1.running_mean"))


def test_batches_have_the_size_asked_for_and_none_comes_alone(blobs):
    @dataclass
    class Sizes(lab.Method):
        seen: list[int] = field(init=False)

        def on_start(self, run):
            self.seen = []

        def on_step(self, run):
            self.seen.append(len(run.y))

    assert method(lab.fit(mlp(), blobs, Sizes(), epochs=1, batch_size=100, **QUIET)).seen == [100, 100, 40]
    assert method(lab.fit(mlp(), blobs, Sizes(), epochs=1, batch_size=239, **QUIET)).seen == [240]
    assert method(lab.fit(mlp(), blobs, Sizes(), epochs=1, batch_size=1000, **QUIET)).seen == [240]


def test_recurrent_dropout_is_the_runs_own(blobs):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(1, 8, 2, dropout=0.5, batch_first=True)
            self.fc = nn.Linear(8, 4)

        def forward(self, x):
            return self.fc(self.lstm(x[..., None])[0][:, -1])

    model = Recurrent()
    before = torch.get_rng_state()
    one, two = (lab.fit(model, blobs, epochs=1, **QUIET) for _ in range(2))
    assert equal(one.model, two.model)
    assert torch.equal(before, torch.get_rng_state())


def test_spatial_dropout_drops_whole_channels(blobs):
    from pruninglab.randomness import own_randomness

    with own_randomness(0):
        batch, alone = F.dropout2d(torch.ones(8, 16, 4, 4)), F.dropout1d(torch.ones(16, 9))
    assert ((batch.flatten(2) == 0).all(-1) == (batch.flatten(2) == 0).any(-1)).all()
    assert ((alone == 0).all(-1) == (alone == 0).any(-1)).all()
    assert 0 < int((alone[:, 0] == 0).sum()) < 16


def test_convolutions_of_different_dimensions_train_together():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.plane, self.line = nn.Conv2d(1, 2, 3), nn.Conv1d(2, 3, 3)
            self.volume, self.fc = nn.Conv3d(1, 1, 1), nn.Linear(12, 10)

        def forward(self, x):
            x = self.line(self.plane(x).flatten(2))[:, :, :4]
            return self.fc(self.volume(x[:, None, None]).flatten(1))

    data = lab.load("digits", train=100, test=30, size=8)
    run = lab.fit(Mixed(), data, OneShot(0.5), epochs=1, **QUIET)
    assert run.status == "done"


def test_a_model_with_complex_buffers_is_trained_and_recorded(blobs):
    model = mlp()
    model.register_buffer("phases", torch.polar(torch.ones(3), torch.arange(3.0)))
    run = lab.fit(model, blobs, OneShot(0.5), epochs=1, **QUIET)
    assert run.status == "done"
    assert run.result.size["nonzero"] == 448 // 2 + 36
    assert "sparse_bytes" not in run.result.size


@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.spectral_norm, nn.utils.parametrizations.weight_norm])
def test_a_parametrized_model_trains_and_is_recorded(blobs, wrap):
    model = mlp()
    wrap(model[3])
    run = lab.fit(model, blobs, OneShot(0.5), epochs=1, **QUIET)
    assert run.result.flops["dense"] == 2 * 448


# -- choices on validation ------------------------------------------------------------------------------------------


def test_best_counts_only_from_the_final_mask_on(blobs):
    run = lab.fit(mlp(), blobs, Gradual(lab.Cubic(0.97), end=0.6), epochs=10, keep="best", **QUIET)
    dense_epochs = [h["val_accuracy"] for h in run.history if h["sparsity"] < run.sparsity]
    final = [h["val_accuracy"] for h in run.history if h["sparsity"] == run.sparsity]
    assert dense_epochs
    assert max(dense_epochs) > max(final)
    assert run.best is not None
    assert run.best.score == max(final)
    assert run.best.masks.kept == run.masks.kept
    assert run.result.accuracy["val"]["accuracy"] == max(final)


def test_patience_ends_a_run_and_says_why(blobs):
    run = lab.fit(mlp(), blobs, epochs=60, lr=0.02, patience=3, **QUIET)
    assert run.status == "stopped"
    assert run.epoch < 60
    assert "3 epochs" in run.reason
    assert run.best is not None
    assert run.epoch - run.best.step // run.steps_per_epoch == 3


def test_patience_waits_for_the_last_cut(blobs):
    run = lab.fit(mlp(), blobs, Gradual(lab.Cubic(0.9), end=1.0), epochs=12, lr=0.05, patience=1, **QUIET)
    assert run.sparsity == pytest.approx(0.9, abs=0.002)


def test_accuracy_is_weighted_by_samples():
    """Seven samples in batches of four and three: 5/7, not the mean of two batch means."""
    from pruninglab.train.evaluate import evaluate

    logits = torch.eye(2)[[0, 0, 0, 0, 1, 1, 1]]
    y = torch.tensor([0, 0, 0, 0, 1, 0, 0])
    batches = [(logits[:4], y[:4]), (logits[4:], y[4:])]
    scores = evaluate(nn.Identity(), batches, F.cross_entropy)
    assert scores["accuracy"] == pytest.approx(5 / 7)
    assert scores["loss"] == pytest.approx(F.cross_entropy(logits, y).item())
    assert "top5" not in scores


def test_top5_from_a_hundred_classes_on():
    from pruninglab.train.evaluate import evaluate

    logits = torch.arange(100.0).repeat(4, 1)
    scores = evaluate(nn.Identity(), [(logits, torch.tensor([99, 95, 94, 0]))], F.cross_entropy)
    assert (scores["accuracy"], scores["top5"]) == (0.25, 0.5)


def test_evaluate_touches_neither_modes_nor_results(blobs):
    @dataclass
    class Peek(lab.Method):
        modes: list = field(init=False)

        def on_step(self, run):
            run.model.get_submodule("2").eval()
            run.evaluate("val")
            self.modes = [m.training for m in run.model.children()]
            run.model.get_submodule("2").train()

    plain = lab.fit(mlp(0.5), blobs, epochs=2, **QUIET)
    peeking = lab.fit(mlp(0.5), blobs, Peek(), epochs=2, **QUIET)
    assert method(peeking).modes == [True, True, False, True]
    assert equal(plain.model, peeking.model)


# -- the user's own -------------------------------------------------------------------------------------------------


def test_own_criterion_method_loss_and_metric(blobs):
    def small_first(model, batches):
        return {name: -w.detach().abs() for name, w in lab.prunable(model).items()}

    @dataclass
    class Shrink(lab.Method):
        strength: float = 0.1

        def on_loss(self, run):
            return self.strength * torch.stack([w.square().sum() for w in run.weights.values()]).sum()

    plain = lab.fit(mlp(), blobs, epochs=3, **QUIET)
    run = lab.fit(
        mlp(), blobs, Shrink(), OneShot(0.5, small_first), epochs=3,
        loss=lambda logits, y: F.cross_entropy(logits, y, label_smoothing=0.1),
        metric=lambda logits, y: (logits.argmax(1) != y).float() * -1, **QUIET,
    )  # fmt: skip
    norm = lambda model: sum(p.square().sum().item() for p in model.parameters())  # noqa: E731
    assert norm(run.model) < norm(plain.model) / 2
    assert run.sparsity == 0.5
    assert -1 <= run.result.accuracy["test"]["accuracy"] <= 0
    assert run.result.config["methods"][1]["criterion"].startswith("small_first ")


def test_distillation_learns_from_the_dense_net(blobs):
    dense = lab.fit(mlp(), blobs, epochs=10, lr=0.01, **QUIET)
    taught = lab.fit(mlp(seed=3), blobs, epochs=10, lr=0.01, loss=lab.train.Distill(dense.model, weight=1.0), **QUIET)
    assert taught.result.accuracy["test"]["accuracy"] > 0.8
    x, y = next(iter(blobs.val))
    loss = lab.train.Distill(dense.model)
    assert loss(dense.model(x), y, x).item() == pytest.approx(0.1 * F.cross_entropy(dense.model(x), y).item(), rel=1e-4)


# -- clear ends -----------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_ends_the_epoch_and_names_the_layer(blobs):
    @dataclass
    class Poison(lab.Method):
        def on_grad(self, run):
            if run.step == 4:
                run.weights["3.weight"].grad = torch.full((4, 32), float("inf"))

    run = lab.fit(mlp(), blobs, Poison(), epochs=5, batch_size=60, optimizer="sgd", **QUIET)
    assert run.status == "diverged"
    assert run.epoch == 2
    assert "epoch 2" in run.reason
    assert "3.weight" in run.reason
    assert "0.weight" not in run.reason
    assert run.result.status == "diverged"


def test_inputs_that_are_no_numbers_are_traced_to_the_first_layer(blobs):
    broken = copy.deepcopy(blobs)
    broken.train.x[7, 0] = float("nan")
    run = lab.fit(mlp(), broken, epochs=2, **QUIET)
    assert run.status == "diverged"
    assert run.epoch == 1
    assert "output of 0" in run.reason or "loss is NaN" in run.reason
    assert all(torch.isfinite(p).all() for p in run.model.parameters())  # the last good state is kept


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals reach the main thread")
def test_ctrl_c_ends_with_what_was_reached(blobs):
    @dataclass
    class Press(lab.Method):
        def on_step(self, run):
            if run.step == 7:
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    run = lab.fit(mlp(), blobs, Press(), epochs=50, batch_size=60, **QUIET)
    assert (run.status, run.step) == ("interrupted", 7)
    assert run.result.accuracy["test"]["accuracy"] > 0
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("at", [4, 7, 8, 12])
def test_interrupted_anywhere_and_resumed_is_the_same_run(blobs, tmp_path, at):
    """At the end of an epoch, in the middle of one, and at the last step."""

    @dataclass
    class Press(lab.Method):
        def on_step(self, run):
            if run.step == at:
                run.interrupt()

    def go(checkpoint):
        return lab.fit(mlp(0.3), blobs, Press(), epochs=3, batch_size=60, keep="best", checkpoint=checkpoint, **QUIET)

    first = go(tmp_path / "c")
    assert first.status == ("done" if at == 12 else "interrupted")
    assert first.step == at
    plain = lab.fit(mlp(0.3), blobs, epochs=3, batch_size=60, keep="best", **QUIET)
    resumed = go(tmp_path / "c")
    assert (resumed.status, resumed.step) == ("done", 12)
    assert equal(resumed.model, plain.model)
    assert resumed.history == plain.history


def test_ctrl_c_in_a_fit_inside_a_fit_ends_both(blobs):
    @dataclass
    class Press(lab.Method):
        def on_step(self, run):
            if run.step == 2:
                os.kill(os.getpid(), signal.SIGINT)

    @dataclass
    class Nested(lab.Method):
        def on_epoch(self, run):
            lab.fit(mlp(), run.data, Press(), epochs=9, **QUIET)

    run = lab.fit(mlp(), blobs, Nested(), epochs=9, batch_size=60, **QUIET)
    assert (run.status, run.epoch) == ("interrupted", 1)


def test_stop_ends_after_the_step_and_is_in_the_record(blobs):
    @dataclass
    class Enough(lab.Method):
        def on_step(self, run):
            if run.step == 3:
                run.stop("seen enough")

    run = lab.fit(mlp(), blobs, Enough(), epochs=9, batch_size=60, **QUIET)
    assert (run.step, run.result.status, run.result.reason) == (3, "stopped", "seen enough")
    assert run.history[-1]["step"] == 3


def test_a_target_that_is_missed_is_said(blobs):
    @dataclass
    class Promise(lab.Method):
        def on_start(self, run):
            run.aim(0.9)
            run.cut("magnitude", 0.5)

    run = lab.fit(mlp(), blobs, Promise(), epochs=1, **QUIET)
    assert run.status == "target_missed"
    assert "0.5000 was reached, 0.9 was asked for" in run.reason
    assert "target_missed" in repr(run)


# -- going on -------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_from_a_run_and_its_steps_count(blobs):
    dense = lab.fit(mlp(), blobs, epochs=2, **QUIET)
    pruned = lab.fit(dense, blobs, OneShot(0.5), epochs=3, **QUIET)
    tuned = lab.fit(pruned, blobs, epochs=1, **QUIET)
    assert pruned.result.steps["before"] == dense.step
    assert tuned.result.steps["before"] == dense.step + pruned.step
    assert tuned.origin["dense"] == pruned.origin["weights"] == identity.tensor_hash(dense.model.state_dict())
    assert tuned.sparsity == 0.5


def test_rewinding_restores_everything(blobs):
    """From a snapshot at step k the rest of the run is the same bits: weights, buffers, optimizer, order and rate."""

    @dataclass
    class Keep(lab.Method):
        at: int
        kept: object = field(init=False)

        def on_step(self, run):
            if run.step == self.at:
                self.kept = run.snapshot()

    model = nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4))
    whole = lab.fit(model, blobs, Keep(8), epochs=4, optimizer="sgd", lr=0.1, **QUIET)
    rewound = lab.fit(model, blobs, epochs=4, optimizer="sgd", lr=0.1, start=method(whole).kept, **QUIET)
    assert equal(whole.model, rewound.model)
    assert [h["lr"] for h in rewound.history] == [h["lr"] for h in whole.history][-len(rewound.history) :]


def test_steps_are_counted_once_when_a_run_is_rewound(blobs):
    dense = lab.fit(mlp(), blobs, epochs=3, batch_size=60, **QUIET)
    early = lab.fit(mlp(), blobs, epochs=3, batch_size=60, **QUIET).snapshot()
    ticket = lab.fit(dense, blobs, epochs=5, batch_size=60, start=early, **QUIET)
    assert (ticket.result.steps["before"], ticket.result.steps["own"]) == (12, 8)
    assert lab.fit(ticket, blobs, epochs=1, batch_size=60, **QUIET).result.steps["before"] == 20
    with pytest.raises(lab.ConfigError, match="step 12, but epochs=2 is over after 8"):
        lab.fit(dense, blobs, epochs=2, batch_size=60, start=early, **QUIET)


def test_a_run_does_not_go_on_with_another_split_of_the_same_data(blobs):
    one, two = (lab.load("digits", train=200, test=60, size=8, seed=s) for s in (0, 1))
    run = lab.fit(lab.build("lenet300", one), one, epochs=1, **QUIET)
    with pytest.raises(lab.ConfigError, match="may be in this validation split"):
        lab.fit(run, two, epochs=1, **QUIET)
    assert lab.fit(run.model, two, epochs=1, **QUIET).status == "done"


def test_a_snapshot_survives_the_disk(blobs, tmp_path):
    run = lab.fit(mlp(), blobs, OneShot(0.5), epochs=1, **QUIET)
    snapshot = run.snapshot()
    snapshot.save(tmp_path / "s.safetensors")
    again = lab.Snapshot.load(tmp_path / "s.safetensors")
    assert again.step == snapshot.step
    assert all(torch.equal(again.weights[n], w) for n, w in snapshot.weights.items())
    assert again.masks.fingerprint == run.masks.fingerprint
    assert equal(again.load_into(mlp(seed=9)), run.model)
    with pytest.raises(lab.ConfigError, match="another model"):
        again.load_into(nn.Sequential(nn.Linear(10, 5)))


# -- wrong input ----------------------------------------------------------------------------------------------------


@dataclass
class Asks(lab.Method):
    def on_start(self, run):
        run.evaluate("tets")


@dataclass
class CutsNothing(lab.Method):
    def on_start(self, run):
        run.cut("magnitude", {"fc9*": 0.5})


def test_numbers_of_numpy_are_numbers(blobs):
    half, one, rate = (cast(Any, n) for n in (np.float32(0.5), np.int64(1), np.float32(1e-3)))
    run = lab.fit(mlp(), blobs, OneShot(half), epochs=one, lr=rate, progress=False)
    assert run.result.config["epochs"] == 1
    assert run.masks.sparsity == 0.5


def test_wrong_input_stops_before_training_and_says_what_was_expected(blobs, tmp_path):
    def refuses(error, match, *args, model=None, data=blobs, **kwargs):
        settings: dict[str, Any] = {"epochs": 1, **QUIET, **kwargs}
        with pytest.raises(error, match=match):
            lab.fit(model or mlp(), data, *args, **settings)

    refuses(lab.ConfigError, "'adamw', 'sgd'", optimizer="adagrad")
    refuses(lab.ConfigError, "epochs=-1", epochs=-1)
    refuses(lab.ConfigError, "epochs=1.5; expected a whole number", epochs=1.5)
    refuses(lab.ConfigError, "lr=nan", lr=float("nan"))
    refuses(lab.ConfigError, "lr_schedule='cosinus'", lr_schedule="cosinus")
    refuses(lab.ConfigError, "keep='first'", keep="first")
    refuses(lab.ConfigError, "device='tpu'", device="tpu")
    refuses(lab.ConfigError, "is a class; pass an instance", OneShot)
    refuses(lab.ConfigError, "is no method", "magnitude")
    refuses(lab.ConfigError, "nothing to prune", OneShot(0.5), model=nn.Sequential(nn.BatchNorm1d(10)))
    with pytest.raises(lab.ConfigError, match=r"Did you mean 0.95"):
        OneShot(95)
    with pytest.raises(lab.ConfigError, match=r"sparsity=1.5; expected a number of at least 0 and below 1"):
        OneShot(1.5)
    refuses(lab.ConfigError, "would cut all 448", OneShot(0.9999))
    refuses(lab.ConfigError, "matches no prunable layer", OneShot({"fc": 0.5}))
    refuses(lab.ConfigError, "epochs=0", Gradual(lab.Cubic(0.5)), epochs=0)
    refuses(lab.ConfigError, "another model|name 7.weight", masks={"7.weight": torch.ones(2, 2, dtype=torch.bool)})
    refuses(
        lab.ConfigError,
        "gave no score for 3.weight",
        OneShot(0.5, lambda m, b: {"0.weight": m.get_parameter("0.weight")}),
    )
    refuses(lab.ConfigError, "does not take what blobs gives", model=nn.Sequential(nn.Linear(11, 4)))
    refuses(lab.DataError, "labels .* from 0 to 3, but the model has 3 outputs", model=nn.Sequential(nn.Linear(10, 3)))
    refuses(lab.ConfigError, "expected their mean", loss=lambda logits, y: F.cross_entropy(logits, y, reduction="none"))
    refuses(lab.ConfigError, "it is a sum", loss=lambda logits, y: F.cross_entropy(logits, y, reduction="sum"))
    refuses(lab.ConfigError, "one value for each", metric=lambda logits, y: (logits.argmax(1) == y).float().mean())
    refuses(lab.ConfigError, "no parameter to train", model=nn.Sequential(nn.Flatten()))
    refuses(lab.ConfigError, "data is a list", data=[1])
    refuses(lab.ConfigError, "'val' or 'test'", Asks())
    refuses(lab.ConfigError, "matches no prunable layer", CutsNothing())
    refuses(lab.ConfigError, "is a folder", checkpoint=tmp_path)
    refuses(lab.ConfigError, "cannot be written", record="/proc/nowhere/x.json")
    with pytest.raises(TypeError, match="criterium"):
        OneShot(0.5, criterium="magnitude")  # pyright: ignore[reportCallIssue]


def test_a_method_is_checked_when_it_is_made():
    with pytest.raises(TypeError, match="on_batch would never be called; the moments are on_start"):

        class Misspelled(lab.Method):
            def on_batch(self, run): ...

    with pytest.raises(TypeError, match="final"):

        class Derived(OneShot): ...


def test_a_method_without_dataclass_is_refused(blobs):
    class Bare(lab.Method): ...

    with pytest.raises(lab.ConfigError, match="@dataclass"):
        lab.fit(mlp(), blobs, Bare(), epochs=1, **QUIET)


# -- what its owner has frozen --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images() -> lab.Data:
    return lab.load("digits", train=48, test=20, size=16)


def backbone_and_head(data: lab.Data) -> nn.Module:
    """Two convolutions and two linear layers, the first of each frozen, as for training a head on a backbone."""
    torch.manual_seed(0)
    layers: dict[str, nn.Module] = {"conv1": nn.Conv2d(1, 8, 3), "norm1": nn.BatchNorm2d(8), "relu1": nn.ReLU()}
    layers |= {"conv2": nn.Conv2d(8, 8, 3), "norm2": nn.BatchNorm2d(8), "relu2": nn.ReLU()}
    layers |= {"pool": nn.AdaptiveAvgPool2d(3), "flat": nn.Flatten(), "fc1": nn.Linear(72, 32), "relu3": nn.ReLU()}
    model = nn.Sequential(OrderedDict(layers | {"fc2": nn.Linear(32, 10)}))
    for name in ("conv1", "norm1", "fc1"):
        model.get_submodule(name).requires_grad_(False)
    return model


@pytest.mark.parametrize("name", [name for name in METHODS if "N2NSkip" not in name])  # it needs skip connections
def test_no_method_changes_what_is_frozen(images, name):
    model = backbone_and_head(images)
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    run = lab.fit(model, images, *METHODS[name], epochs=2, batch_size=16, **QUIET)
    after = dict(run.model.named_parameters())
    assert [n for n, p in frozen.items() if not torch.equal(after[n], p)] == []
    assert not frozen.keys() & run.weights.keys()
    assert not any(after[n].requires_grad for n in frozen)
    assert run.weights.keys() == {"conv2.weight", "fc2.weight"}


def test_what_is_frozen_is_in_scope_by_its_name_alone(images):
    model = backbone_and_head(images)
    before = model.get_parameter("conv1.weight").detach().clone()
    dense = model.requires_grad_(True)
    pruned = lab.fit(dense, images, OneShot(0.5), epochs=1, batch_size=16, **QUIET)
    pruned.model.get_submodule("conv1").requires_grad_(False)
    with pytest.raises(lab.ConfigError, match=r"name conv1.weight, which are frozen.*include=\['conv1.weight'\]"):
        lab.fit(pruned, images, epochs=1, **QUIET)
    held = lab.fit(pruned, images, epochs=1, include="conv1.weight", **QUIET)
    assert held.masks.fingerprint == pruned.masks.fingerprint
    without = {name: mask for name, mask in pruned.masks.items() if name != "conv1.weight"}
    freed = lab.fit(pruned, images, masks=without, epochs=1, **QUIET)
    kept = pruned.model.get_parameter("conv1.weight")
    assert not torch.equal(kept, before)
    for run in (held, freed):
        assert torch.equal(run.model.get_parameter("conv1.weight"), kept)
    cut = lab.fit(pruned, images, OneShot(0.9), epochs=1, include="conv1.weight", **QUIET)
    assert torch.equal(cut.model.get_parameter("conv1.weight"), kept * cut.masks["conv1.weight"])
    assert cut.masks["conv1.weight"].sum() < pruned.masks["conv1.weight"].sum()


def test_a_score_that_needs_gradients_says_that_frozen_weights_have_none(images):
    for method in (OneShot(0.5, "snip"), SynFlow(0.5)):
        with pytest.raises(lab.ConfigError, match=r"gave no score for conv1.weight.*frozen has no gradient"):
            lab.fit(backbone_and_head(images), images, method, epochs=1, include="conv1.weight", **QUIET)


def test_what_cannot_be_trained_on_is_refused_before_anything_is(blobs, tmp_path, monkeypatch):
    net = nn.Sequential(nn.Linear(10, 4))
    for value in (math.nan, math.inf):
        broken = copy.deepcopy(net)
        broken[0].weight.data[1, 2] = value  # pyright: ignore[reportIndexIssue]
        with pytest.raises(lab.ConfigError, match=r"NaN or infinity in 0\.weight before any training"):
            lab.fit(broken, blobs, epochs=1, checkpoint=tmp_path / "c")
    with pytest.raises(lab.ConfigError, match=r"wrapped in DataParallel; give the network within it"):
        lab.fit(nn.DataParallel(net), blobs, epochs=1)
    with pytest.raises(lab.ConfigError, match="there is one CPU"):
        lab.fit(net, blobs, epochs=1, device="cpu:7")
    assert not list(tmp_path.iterdir())


def test_what_a_finished_run_is_scored_by_follows_its_seed(blobs):
    """A criterion that draws takes nothing from the global generator, and leaves it where it was."""

    def drawn(seed: int) -> dict[str, torch.Tensor]:
        run = lab.fit(nn.Linear(10, 4), blobs, epochs=1, seed=seed, progress=False)
        before = torch.get_rng_state()
        scores = run.score("random")
        assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(scores[name], again) for name, again in run.score("random").items())
        return scores

    first, again, other = (drawn(seed)["weight"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
