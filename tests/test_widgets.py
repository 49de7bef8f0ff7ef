"""The panels, driven from Python as their controls would; `test_browser.py` presses the real ones."""

import json
import math
import random
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal, cast

import ipywidgets as ipw
import numpy as np
import pytest
import torch
from ipykernel.comm.comm import BaseComm
from ipykernel.kernelbase import Kernel
from ipykernel.subshell_manager import SubshellManager

import pruninglab as lab
from pruninglab import identity, methods, widgets
from pruninglab.analysis import allocation
from pruninglab.typed import Fraction, Strength
from pruninglab.widgets import explorer as explorer_module
from pruninglab.widgets import forms, front, job, live
from pruninglab.widgets import truth as truth_meter


@pytest.fixture(scope="module")
def data() -> lab.Data:
    return lab.load("digits", train=300, test=60)


@pytest.fixture(scope="module")
def run(data) -> lab.Run:
    return lab.fit(lab.build("lenet5", data, seed=0), data, epochs=3, progress=False)


@pytest.fixture
def hand(run) -> widgets.PruneByHand:
    return widgets.PruneByHand(run)


def measured(run: lab.Run, masks: lab.Masks) -> float:
    """Accuracy on the validation images of the run's model with only these weights."""
    pruned, _ = lab.prune(run.model, 0.0)
    masks.apply_({name: w.data for name, w in lab.prunable(pruned).items()})
    x, y = next(iter(run.data.val.batches([torch.arange(len(run.data.val))])))
    with torch.inference_mode():
        return float((pruned.eval()(x).argmax(1) == y).float().mean())


def test_the_slider_of_all_layers_is_global_magnitude(run, hand):
    hand.keep(0.1)
    _, magnitude = lab.prune(run, 0.9)
    assert hand.masks.fingerprint == magnitude.fingerprint
    assert hand.accuracy == hand.rival == pytest.approx(measured(run, magnitude))


def test_a_layer_s_slider_moves_that_layer_alone_and_the_rival_keeps_as_many(run, hand):
    hand.keep(0.1)
    before = dict(hand.kept)
    hand.keep(0.5, "fc1.weight")
    assert hand.kept == before | {"fc1.weight": round(0.5 * run.weights["fc1.weight"].numel())}
    assert hand.masks.kept == sum(hand.kept.values())
    smallest_kept = run.weights["fc1.weight"].abs()[hand.masks["fc1.weight"]].min()
    assert smallest_kept >= run.weights["fc1.weight"].abs()[~hand.masks["fc1.weight"]].max()
    _, magnitude = lab.prune(run, 1 - hand.masks.kept / hand.masks.total)
    assert hand.accuracy == pytest.approx(measured(run, hand.masks))
    assert hand.rival == pytest.approx(measured(run, magnitude))


def test_the_run_is_left_alone_and_the_masks_go_into_a_training(data, run, hand):
    before = identity.tensor_hash(run.model.state_dict())
    hand.keep(0.05)
    after = lab.fit(run, data, masks=hand.masks, epochs=1, progress=False)
    assert after.masks.kept == hand.masks.kept
    assert identity.tensor_hash(run.model.state_dict()) == before


def test_what_is_pruned_already_stays_so(data, run):
    pruned = lab.fit(run, data, methods.OneShot(0.9), epochs=0, progress=False)
    hand = widgets.PruneByHand(pruned)
    hand.keep(1.0)
    assert hand.masks.fingerprint == pruned.masks.fingerprint
    hand.keep(1.0, "fc1.weight")
    assert hand.kept["fc1.weight"] == pruned.masks.kept_by_layer["fc1.weight"]


def test_the_suggested_layer_costs_least_by_weight(run, hand):
    hand.keep(0.02)
    before, costs, halves = hand.accuracy, {}, {}
    for layer, kept in hand.kept.items():
        halves[layer] = kept - kept // 2
        pruned = {layer: run.weights[layer].detach().abs() * hand.masks[layer]}
        fewer = lab.keep_top(pruned, 1 - halves[layer] / pruned[layer].numel())
        costs[layer] = (before - measured(run, lab.Masks({**hand.masks, **fewer}))) / (kept // 2)
    name, fewer = hand.suggest(0.5)
    assert costs[name] == pytest.approx(min(costs.values()))
    assert fewer == halves[name]


def test_the_suggestion_can_be_taken(hand):
    hand.keep(0.02)
    before = dict(hand.kept)
    press(hand, "ask")
    assert hand.kept == before
    name, fewer = hand.suggest()
    hint = f"{name.removesuffix('.weight')} could go from {before[name]:,} to {fewer:,} weights"
    assert hand._front.shown["hint"] == hint
    press(hand, "take")
    assert hand.kept == before | {name: fewer}
    assert hand._front.shown["hint"] == ""
    press(hand, "ask")
    assert hand._front.shown["can_take"]
    hand.keep(0.5, name)  # what was suggested was meant for other counts
    assert not hand._front.shown["can_take"]
    before = dict(hand.kept)
    press(hand, "take")
    assert hand.kept == before


def press(hand: widgets.PruneByHand, button: str) -> None:
    hand._front._handle_custom_msg({"do": button}, [])


def test_where_nothing_can_be_suggested_the_panel_says_so(hand):
    for layer in hand.kept:
        hand.keep(0, layer)
    press(hand, "ask")
    assert "every layer has a single weight left" in hand._front.shown["hint"]


def test_the_words_are_those_of_what_is_left(run, hand):
    hand.keep(0.1)
    assert f"{hand.masks.kept:,} of {run.masks.total:,}" in repr(hand)
    assert f"{hand.accuracy:.2%} by hand" in repr(hand)
    assert "level with global magnitude" in hand._front.shown["title"]
    sizes = lab.storage.sizes(run.model, hand.masks)
    assert dict(hand._front.shown["rows"])["sparse file"] == f"{allocation.file_bytes(run, hand.masks):,} bytes"
    assert allocation.file_bytes(run, hand.masks) < sizes["bytes"]


class Browser:
    """What `hand.js` does, and when: messages wait on the way, both to it and to the kernel.

    One question at a time is on its way; what is moved meanwhile goes into the next one.
    """

    def __init__(self, hand: widgets.PruneByHand):
        self.front, self.shown = hand._front, hand._front.shown
        self.turn, self.asked, self.moves = 0, 0, []
        self.to_browser: list[dict[str, Any]] = []
        self.to_kernel: list[dict[str, Any]] = []
        self.twin: widgets.PruneByHand | None = None  # another panel, which hears of the user's moves alone
        self.redraws = 0
        self.front.observe(self.told, "shown")

    def told(self, change: Any) -> None:
        self.redraws += 1
        self.to_browser.append(change["new"])

    def drag(self, number: int, part: float) -> None:
        """Take a slider to a part of its way, from 0 to 1; the first is that of all layers."""
        move = [number, round(part * (len(self.front.shares) - 1))]
        self.turn += 1
        self.moves = [*(m for m in self.moves if m[0] != number), move] if number else [move]
        self.ask()

    def ask(self) -> None:
        if self.moves and not self.asked:
            self.asked = self.turn
            self.to_kernel.append({"do": "move", "turn": self.turn, "moves": self.moves})
            self.moves = []

    def receive(self) -> None:
        shown = self.to_browser.pop(0)
        if self.asked and shown["turn"] >= self.asked:
            self.asked = 0
        if self.moves:
            self.ask()
        elif not self.asked:
            self.shown = shown

    def send(self) -> None:
        assert len(self.to_kernel) == 1, "questions queue"
        message = self.to_kernel.pop(0)
        self.front._handle_custom_msg(message, [])
        if self.twin:
            self.twin._front._handle_custom_msg(message, [])

    def rest(self) -> None:
        while self.to_browser or self.to_kernel:
            self.receive() if self.to_browser else self.send()


def inside(box: Any) -> Iterator[Any]:
    yield box
    for child in getattr(box, "children", ()):
        yield from inside(child)


def of_kind(kind: str, data: lab.Data, run: lab.Run) -> lab.Run:
    if kind == "pruned":
        return lab.fit(run, data, methods.OneShot(0.9), epochs=0, progress=False)
    if kind == "biases":  # layers of a few weights, which a step of a slider may not change
        return lab.fit(run.model, data, biases=True, epochs=0, progress=False)
    return run


def on_screen(hand: widgets.PruneByHand) -> None:
    """All numbers of the panel are those of one state, which is that of `kept`."""
    shown, masks = hand._front.shown, hand.masks
    assert shown["kept"] == list(hand.kept.values()) == list(masks.kept_by_layer.values())
    assert dict(shown["rows"])["accuracy, by hand"] == f"{hand.accuracy:.2%}"
    shares = [masks.density, *(float(mask.float().mean()) for mask in masks.values())]
    positions = hand._front.shares
    for at, share in zip(shown["at"], shares, strict=True):
        assert abs(math.log10(positions[at] / max(share, positions[0]))) <= 0.0251


@pytest.mark.parametrize("kind", ["dense", "pruned", "biases"])
def test_a_drag_is_answered_once_and_then_the_panel_rests(data, run, kind):
    hand = widgets.PruneByHand(of_kind(kind, data, run), images=20)
    browser, chance = Browser(hand), random.Random(0)
    for _ in range(15):
        number = chance.randrange(1 + len(hand.kept))
        before, kept = browser.redraws, dict(hand.kept)
        browser.drag(number, chance.random())
        browser.rest()
        assert browser.redraws - before <= 1
        assert browser.shown == hand._front.shown
        if number:  # all other layers are as they were
            moved = [name for name in kept if hand.kept[name] != kept[name]]
            assert moved in ([], [list(kept)[number - 1]])
        on_screen(hand)


@pytest.mark.parametrize("kind", ["dense", "pruned", "biases"])
def test_a_browser_that_answers_late_changes_nothing(data, run, kind):
    """Drags of the user and calls of code lead to what they lead to without a browser, whatever is still on its way."""
    chosen = of_kind(kind, data, run)
    hand, alone = (widgets.PruneByHand(chosen, images=20) for _ in range(2))
    browser, chance, actions = Browser(hand), random.Random(kind), 0
    browser.twin = alone
    for _ in range(60):
        what = chance.choice(["drag", "drag", "code", "receive", "receive", "send", "send"])
        if what == "drag":
            browser.drag(chance.randrange(1 + len(hand.kept)), chance.random())
            actions += 1
        elif what == "code":
            share, layer = 10 ** chance.uniform(-3, 0), chance.choice([None, *hand.kept])
            hand.keep(share, layer)
            alone.keep(share, layer)
            actions += 1
        elif what == "receive" and browser.to_browser:
            browser.receive()
        elif what == "send" and browser.to_kernel:
            browser.send()
    browser.rest()
    assert hand.kept == alone.kept
    assert browser.redraws <= actions
    assert browser.shown == hand._front.shown
    on_screen(hand)


@pytest.mark.parametrize("kind", ["dense", "pruned", pytest.param("biases", marks=pytest.mark.slow)])
def test_the_browser_s_tables_are_what_the_kernel_would_keep(data, run, kind):
    hand = widgets.PruneByHand(of_kind(kind, data, run), images=20)
    own: Any = hand._front
    for at in range(0, len(own.shares), 9):
        hand.keep(own.shares[at])
        assert own.together[at] == list(hand.kept.values())
        for layer in own.layers:
            hand.keep(own.shares[at], layer["name"])
            assert hand.kept[layer["name"]] == layer["counts"][at]
    ranks, first = np.frombuffer(own.ranks, np.uint32), own.layers[0]
    drawn = ranks[: first["rows"] * first["cols"]] < hand.kept[first["name"]]
    assert drawn.sum() == hand.masks[first["name"]].sum()  # a small layer is drawn whole


def test_no_module_of_the_browser_writes_a_trait():
    """The kernel writes traits, the browser sends messages: nothing can travel in a circle."""
    modules = {path.name: path.read_text(encoding="utf-8") for path in front.FOLDER.glob("*.js")}
    assert len(modules) >= 3
    assert [name for name, text in modules.items() if "save_changes" in text or "model.set(" in text] == []
    assert [name for name, text in modules.items() if re.search(r"https?://|^import ", text, re.M)] == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda run: widgets.PruneByHand(run, images=0), "images=0"),
        (lambda run: widgets.PruneByHand(run).keep(0.1, "fc9"), "layer='fc9'; expected one of"),
        (lambda run: widgets.MaskExplorer(), "give runs"),
        (lambda run: widgets.MaskExplorer(run, layer="fc9"), "layer='fc9'; expected one of"),
        (lambda run: widgets.MaskExplorer(run).trajectory(0), "watch=24"),
        (lambda run: widgets.LivePanel(method="Best"), "method='Best'"),
        (lambda run: widgets.LivePanel().figure(), "press Start"),
    ],
)
def test_what_is_wrong_is_said(run, wrong, said):
    with pytest.raises(lab.ConfigError, match=said):
        wrong(run)


def test_saved_without_its_widgets_a_panel_is_its_figure_and_words(hand):
    data, _ = hand._repr_mimebundle_()
    assert '<img src="data:image/png;base64,' in data["text/html"]
    assert "weights" in data["text/plain"]
    assert "application/vnd.jupyter.widget-view+json" in data


# The explorer


def drawn(explorer: widgets.MaskExplorer, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What `explorer.js` makes of its message: the values, and which of them are kept."""
    own, about = explorer._front, explorer._front.sides[side]
    values, ranks = np.frombuffer(getattr(own, f"content{side}"), np.float32).reshape(2, about["rows"], about["cols"])
    keep = about["keeps"][about["at"]] if about["keep"] is None else about["keep"]
    return torch.tensor(values), torch.tensor(ranks.view(np.int32) < keep)


def test_the_explorer_shows_runs_as_pruned_and_criteria_at_a_density(data, run):
    pruned = lab.fit(run, data, methods.OneShot(0.9), epochs=0, progress=False)
    explorer = widgets.MaskExplorer(pruned, run, labels=["pruned", "dense"], layer="conv2.weight")
    assert explorer.masks(0) == pruned.masks
    assert explorer.masks(1).kept == run.masks.total
    explorer.choose(1, by="magnitude", density=0.1)
    assert explorer.masks(1).fingerprint == pruned.masks.fingerprint
    assert "dense, magnitude at 10.00%" in explorer.figure().alt


@pytest.mark.parametrize("density", [0.9, 0.1, 0.02])
@pytest.mark.parametrize("criterion", ["as pruned", "magnitude", "random", "filter_l1"])
def test_the_browser_draws_what_the_criterion_keeps_of_what_the_run_has_kept(data, run, criterion, density):
    pruned = lab.fit(run, data, methods.OneShot(0.9), epochs=0, progress=False)
    explorer = widgets.MaskExplorer(pruned, layer="conv2.weight")
    explorer.choose(0, by=criterion)
    explorer._front._handle_custom_msg({"do": "density", "side": 0, "at": explorer_at(density)}, [])
    masks = explorer.masks(0)
    assert (masks & ~pruned.masks).kept == 0
    if criterion != "as pruned":
        assert masks.kept == min(masks.total - round(masks.total * (1 - density)), pruned.masks.kept)
    values, kept = drawn(explorer, 0)
    assert torch.equal(values, pruned.weights["conv2.weight"].detach().flatten(1))
    assert torch.equal(kept, masks["conv2.weight"].flatten(1))
    about = explorer._front.sides[0]
    assert about["kept_here"][about["at"] if about["keep"] is None else 0] == masks["conv2.weight"].sum()


def explorer_at(density: float) -> int:
    return explorer_module.DENSITIES.index(density)


def test_the_paths_of_watched_weights_go_to_the_browser(data, run):
    method = methods.WeightMom(lab.Cubic(0.9), window=2, min_epochs_below=1, watch=6)
    pruned = lab.fit(run, data, method, epochs=3, progress=False)
    explorer = widgets.MaskExplorer(pruned, layer="conv2.weight")
    watched = explorer._front.sides[0]["watched"]
    assert len(watched) == 6
    json.dumps(explorer._front.sides, allow_nan=False)
    own: Any = pruned.methods[0]
    weight = pruned.weights["conv2.weight"].detach().flatten(1)
    for one, place in zip(watched, own.watched["conv2.weight"].tolist(), strict=True):
        assert weight[one["row"], one["col"]] == weight.flatten()[place]
        assert len(one["magnitude"]) == 3
    assert "Weight 2 of those followed in conv2" in explorer.trajectory(2).alt


def test_an_error_of_any_kind_is_said_in_the_explorer(run, monkeypatch):
    explorer = widgets.MaskExplorer(run)

    def broken(_: str) -> None:
        raise RuntimeError("no <such> derivative")

    monkeypatch.setattr(run, "score", broken)
    explorer.choose(0, by="magnitude")
    assert explorer._front.sides[0]["words"] == "no <such> derivative"  # shown as text
    assert explorer._front.content0 == b""
    explorer.choose(0, by="as pruned")
    assert explorer._front.sides[0]["words"] == ""
    assert drawn(explorer, 0)[1].all()


# The live panel

PATIENCE = 60
"""Seconds until an answer counts as missing. It comes within a few milliseconds, but not on a busy machine."""
NEED_A_CHOICE = ("PruneWhileAccurate", "DynamicSurgery")
"""A bound or a threshold has to be given; the panel says so."""


def panel(**changed) -> widgets.LivePanel:
    return widgets.LivePanel(**{"epochs": 2, "seed": 3, "batch_size": 300, **changed})


def test_the_panel_leaves_the_run_that_fit_makes():
    live = panel()
    live.start()
    run = live.wait(120)
    data = lab.load("digits", seed=3)
    model = lab.build("lenet5", data, seed=3)
    plain = lab.fit(model, data, methods.Gradual(lab.Cubic(0.9)), epochs=2, seed=3, batch_size=300, progress=False)
    assert run is not None
    assert identity.tensor_hash(run.model.state_dict()) == identity.tensor_hash(plain.model.state_dict())
    assert run.result.config == plain.result.config
    assert run.history == plain.history
    assert live._text.value == "done"
    assert not live._buttons["Start"].disabled


def test_pause_stands_still_and_stop_ends_within_a_step(monkeypatch):
    live, steps, seen = panel(epochs=500), [], threading.Event()
    watched = job.Job.watch

    def watch(one, run):
        steps.append(run.step)
        seen.set()
        watched(one, run)

    monkeypatch.setattr(job.Job, "watch", watch)
    live.start()
    assert seen.wait(60)
    live.pause()
    at = standing(live, steps)
    assert "paused" in live._text.value
    assert live._buttons["Pause"].description == "Resume"
    seen.clear()
    live.resume()
    assert seen.wait(60)
    live.pause()
    at = standing(live, steps)
    live._buttons["Step"].click()
    deadline = time.monotonic() + 20
    while f"paused at step {at + 1:,} " not in live._text.value:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    live.stop()
    run = live.wait(60)
    assert run is not None
    assert (run.status, run.step) == ("interrupted", at + 1)
    assert live._text.value.startswith("interrupted")


def standing(live, steps) -> int:
    """The step at which a paused panel stands, once it does."""
    for _ in range(600):
        if "paused" in live._text.value:
            return steps[-1]
        threading.Event().wait(0.1)
    raise AssertionError("it never paused")


def test_buttons_in_any_order_and_speed_are_answered():
    """Each press is answered by the words of the state that it leads to."""
    live, chance = panel(epochs=5000), random.Random(0)

    def words(*expected: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not any(word in live._text.value for word in expected):
            assert time.monotonic() < deadline, f"{live._text.value!r}, expected {expected}"
            time.sleep(0.002)

    for _ in range(50):
        button = None
        deadline = time.monotonic() + PATIENCE
        while button is None or button.disabled:  # all are, for as long as it is stopping
            assert time.monotonic() < deadline, "no button came back"
            button = live._buttons[chance.choice(["Start", "Pause", "Pause", "Stop"])]
            time.sleep(0.001)
        pressed = button.description
        button.click()
        if pressed == "Start":
            words("preparing", "epoch")
        elif pressed == "Pause":
            words("paus")
            assert button.description == "Resume"
        elif pressed == "Resume":
            words("going on", "epoch")
            assert button.description == "Pause"
        else:
            words("stopping", "interrupted", "stopped before")
            if chance.random() < 0.7:  # else what follows comes while it is still stopping
                words("interrupted", "stopped before")
        time.sleep(chance.choice([0, 0, 0.01, 0.3]))
    if not live._buttons["Stop"].disabled:
        live.stop()
    live.wait(PATIENCE)
    assert any(word in live._text.value for word in ("interrupted", "stopped before"))
    assert [button.disabled for button in live._buttons.values()] == [False, True, True, True]


def test_stop_at_once_after_resume_ends_the_training():
    live = panel(epochs=5000)
    for _ in range(10):
        live.start()
        live.pause()
        live.resume()
        live.stop()
        live.wait(PATIENCE)
        assert any(word in live._text.value for word in ("interrupted", "stopped before"))


def test_an_error_of_any_kind_is_said_and_the_panel_is_ready_again(monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise ValueError("no <such> thing")

    monkeypatch.setattr("pruninglab.widgets.choice.build", broken)
    live = panel()
    live.start()
    assert live.wait(20) is None
    assert "ValueError: no &lt;such&gt; thing" in live._text.value
    assert not live._buttons["Start"].disabled


def test_no_point_is_shown_before_there_is_one_and_none_of_the_run_before(data):
    live = panel()
    assert not [w for w in inside(live.box) if isinstance(w, ipw.Image)]
    assert live.chart.rows == []
    live.start()
    run = live.wait(60)
    assert run is not None
    accuracies = [row["accuracy"] for row in live.chart.rows if "accuracy" in row]
    assert accuracies == [row["val_accuracy"] for row in run.history]
    assert live.chart.rows[-1]["kept"] == [
        kept / run.masks[name].numel() for name, kept in run.masks.kept_by_layer.items()
    ]
    assert live._bar.value == 1.0
    live._chooser.epochs.value = 5000
    live.start()
    live.pause()
    assert live._bar.bar_style == ""
    assert all(row["at"] < 1 for row in live.chart.rows)
    live.stop()
    live.wait(PATIENCE)


def test_what_was_chosen_wrongly_is_said_in_the_panel():
    live = panel(method="N2NSkip")
    live.start()
    assert live.wait(60) is None
    assert "n2nskip" in live._text.value
    assert not live._buttons["Start"].disabled
    live = panel(method="PruneWhileAccurate")
    live.start()
    assert live.wait(60) is None
    assert "needs one bound" in live._text.value


@pytest.mark.parametrize("name", [n for n in methods.__all__ if n not in (*live.BESIDE_OTHERS, *NEED_A_CHOICE)])
def test_every_method_is_offered_with_its_own_defaults(name):
    made: Any = panel(method=name).chosen()
    kind = getattr(methods, name)
    try:
        expected = kind()
    except TypeError:  # its first field has no default
        expected = kind(made.sparsity if hasattr(made, "sparsity") else lab.Cubic(0.9))
    assert repr(made) == repr(expected)


def test_fields_are_read_as_python_writes_them():
    live = panel(method="WeightMom")
    boxes = {control.description: control for control in live._chooser.form.controls.values()}
    assert isinstance(boxes["mode"], ipw.Dropdown)
    assert isinstance(boxes["begin"], ipw.BoundedFloatText)
    boxes["beta"].value, boxes["mode"].value, boxes["window"].value = "0.5", "window_max", 7
    boxes["min epochs below"].value = 3
    made: Any = live.chosen()
    assert (made.beta, made.mode, made.window) == (0.5, "window_max", 7)
    boxes["beta"].value = "7 or 8"
    with pytest.raises(lab.ConfigError, match="beta='7 or 8'"):
        live.chosen()
    boxes["beta"].value = "1.5"
    with pytest.raises(lab.ConfigError, match="at least 0 and below 1 or None"):
        live.chosen()


@dataclass
class Own(lab.Method):
    """A method as a user writes it in a cell."""

    pull: Strength = 0.5
    way: Literal["up", "down"] = "up"
    share: Fraction = 0.25
    often: bool = False


def test_the_types_of_a_user_s_own_method_make_its_controls():
    kinds = {name: type(control) for name, control in forms.Form(Own).controls.items()}
    assert kinds == {
        "pull": ipw.BoundedFloatText,
        "way": ipw.Dropdown,
        "share": ipw.BoundedFloatText,
        "often": ipw.Checkbox,
    }
    with pytest.raises(lab.ConfigError, match="Own: share=2; expected a number from 0 to 1"):
        Own(share=2)


def test_the_meter_says_what_zeros_are_worth_and_what_removal_is(data, run):
    cut = lab.fit(run, data, methods.OneShot(0.5, "filter_l1", scope="layer", unit="channel"), epochs=0, progress=False)
    silent = lab.fit(cut, data, methods.Silence(), epochs=0, progress=False)
    meter = widgets.TruthMeter(run, silent, batches=(8,), rounds=6)
    assert meter.shrunk is not None
    table, small = meter.table, meter.shrunk.model
    assert list(table.index) == ["dense", "with zeros", "dead channels removed"]
    assert table.loc["with zeros", "parameters"] == table.loc["dense", "parameters"]
    assert table.loc["dead channels removed", "parameters"] == sum(p.numel() for p in small.parameters())
    assert table.loc["dead channels removed", "flops"] < table.loc["with zeros", "flops"] == table.loc["dense", "flops"]
    words = meter.words()
    assert f"{silent.masks.kept:,} of {silent.masks.total:,} weights" in words[0]
    assert f"{table.loc['with zeros', 'sparse_bytes']:,.0f}" in words[1]
    assert f"{meter.shrunk.removed:,} channels are dead" in words[-1]
    before = meter.table
    meter.measure()
    assert meter.table is not before
    assert 'src="data:image/png;base64,' in meter._picture.value


def test_the_meter_says_why_nothing_could_be_removed(data, run, monkeypatch):
    def refuse(*_: object) -> None:
        raise lab.ConfigError("for a reason")

    monkeypatch.setattr(truth_meter, "shrink", refuse)
    meter = widgets.TruthMeter(run, run, batches=(8,), rounds=6)
    assert meter.shrunk is None
    assert meter.words()[-1] == "No channel could be removed: for a reason"
    assert list(meter.table.index) == ["dense", "with zeros"]


def test_a_click_reaches_the_kernel_after_the_page_was_opened_again(monkeypatch):
    """The subshell of a page ends with it; ipykernel 7.4 still hands it the messages of the next page."""
    widgets.Workbench()
    manager = SimpleNamespace(list_subshell=lambda: ["new"])
    kernel = SimpleNamespace(shell_channel_thread=SimpleNamespace(manager=manager))
    monkeypatch.setattr(Kernel, "instance", lambda: kernel)
    comm: Any = BaseComm(target_name="jupyter.widget", primary=False)
    for wrote, heard in (("old", "new"), ("new", "new"), (None, None)):
        comm._reply_subshell_id = wrote
        assert comm._reply_subshell_for({}, "new") == heard


@pytest.mark.parametrize("lacks", ["list_subshell", "an argument"])
def test_an_ipykernel_that_is_not_known_is_left_alone_in_words(lacks, monkeypatch):
    route: Any = (lambda comm, data, named: "old") if lacks == "list_subshell" else (lambda comm, data: "old")
    route.__module__ = "ipykernel.comm.comm"
    monkeypatch.setattr(BaseComm, "_reply_subshell_for", route)
    if lacks == "list_subshell":
        monkeypatch.delattr(SubshellManager, "list_subshell")
    with pytest.warns(UserWarning, match="run its cell again"):
        panel()
    assert BaseComm._reply_subshell_for is route


@pytest.mark.parametrize("dear", [0.001, 0.5])
def test_looks_take_a_small_share_of_the_training_however_dear_they_are(dear, monkeypatch):
    clock = SimpleNamespace(now=0.0, looks=0)

    def show(*_: object) -> None:
        clock.now += dear
        clock.looks += 1

    read = lambda: clock.now  # noqa: E731
    monkeypatch.setattr(job, "time", SimpleNamespace(perf_counter=read, thread_time=read))
    monkeypatch.setattr(job.Job, "_show", show)
    training, run = job.Job(widgets.Choice()), SimpleNamespace()
    training.prepare()
    for _ in range(20_000):
        clock.now += 0.01
        training.watch(cast("lab.Run", run))
    assert 2 < clock.looks <= clock.now / job.EVERY
    assert (clock.looks - 1) * dear <= 1.01 * job.SHARE * clock.now
