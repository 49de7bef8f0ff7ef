"""A layer is cut away entirely only where that was asked for, and whoever looks at the run is told."""

from dataclasses import fields, replace
from typing import Any, get_type_hints

import pytest
import torch
from test_contract import METHODS
from torch import nn

import pruninglab as lab
from pruninglab import methods
from pruninglab.typed import choices

SCOPES = ("global", "layer", "erk", "row")
QUICK = ("OneShot", "ADMM", "VariationalDropout-steered", "DynamicSurgery", "SynFlow")


def net(weak: float = 1e-3) -> nn.Sequential:
    """A network whose middle layer has small weights: what ranks all of them together cuts it away."""
    torch.manual_seed(0)
    middle = nn.Linear(12, 12)
    nn.init.uniform_(middle.weight, -weak, weak)
    return nn.Sequential(nn.Linear(10, 12), nn.ReLU(), middle, nn.ReLU(), nn.Linear(12, 4))


def asked_for(made: list[lab.Method], scope: str) -> list[lab.Method]:
    """The same methods at an extreme sparsity, in this scope if they have it."""
    return [replace(method, **_extreme(method, scope)) for method in made]  # pyright: ignore[reportArgumentType]


def _extreme(method: lab.Method, scope: str) -> dict[str, Any]:
    words = get_type_hints(type(method), include_extras=True)
    given: dict[str, Any] = {}
    patterned = getattr(method, "n_of_m", None)
    for field in fields(method):  # pyright: ignore[reportArgumentType]
        value = getattr(method, field.name, None)
        if field.name == "scope" and scope in choices(words["scope"]):
            given["scope"] = scope
        elif field.name in ("sparsity", "target") and isinstance(value, float) and not patterned:
            given[field.name] = 0.97
        elif field.name in ("sparsity", "schedule") and isinstance(value, lab.masks.Schedule):
            given[field.name] = lab.Cubic(0.97)
    return given


CASES = [
    pytest.param(name, scope, marks=[pytest.mark.slow] * (name not in QUICK or scope not in ("global", "layer")))
    for name, made in METHODS.items()
    for scope in SCOPES
    if scope == "global" or repr(asked_for(made, scope)) != repr(asked_for(made, "global"))
]


def fit(blobs: lab.Data, made: list[lab.Method], **options: Any) -> Any:
    """A run, or what refused it before it was trained."""
    options = {"epochs": 2, "batch_size": 40, "lr": 1e-4, "progress": False} | options
    try:
        return lab.fit(net(), blobs, *made, **options)
    except lab.ConfigError as error:
        return error


@pytest.mark.parametrize(("name", "scope"), CASES)
def test_no_layer_is_cut_away_unasked_and_none_in_silence(blobs, name, scope):
    made = asked_for(METHODS[name], scope)
    run, allowed = (fit(blobs, made, **asked) for asked in ({}, {"collapse": "allow"}))
    if isinstance(run, lab.ConfigError) or isinstance(allowed, lab.ConfigError):
        assert str(run) == str(allowed)
        return
    assert (run.status == "collapsed") == bool(run.masks.collapsed) == bool(allowed.masks.collapsed)
    assert allowed.status != "collapsed"
    assert allowed.step == allowed.steps
    for looked_at in (run, allowed):
        gone = looked_at.masks.collapsed
        assert looked_at.result.collapsed == gone
        first, text = repr(looked_at).splitlines()[0], repr(looked_at)
        assert (f"nothing left of {len(gone)} of" in first) == bool(gone)
        assert all(layer in text.partition("nothing is left of")[2] for layer in gone)
    if run.masks.collapsed:
        last = run.cuts[-1]
        assert run.step == last.step  # no step is trained after it
        assert f"the cut at step {run.step}" in run.reason
        assert "collapse='allow'" in repr(run)


EMPTY = {"2.weight": torch.zeros(12, 12, dtype=torch.bool)}
CUT: list[lab.Method] = [methods.Gradual(lab.Cubic(0.97), begin=0.0, end=0.5)]


def test_masks_that_leave_nothing_of_a_layer_are_refused_before_training(blobs):
    refused = fit(blobs, [], masks=EMPTY, progress=lambda run: pytest.fail("it was trained"))
    assert isinstance(refused, lab.ConfigError)
    assert "the masks leave nothing of 2.weight" in str(refused)
    run = fit(blobs, [], masks=EMPTY, epochs=0, collapse="allow")
    assert "nothing left of 1 of 3 layers" in repr(run).splitlines()[0]
    with pytest.raises(lab.ConfigError, match=r"nothing of 2\.weight"):
        lab.fit(run, blobs, epochs=1, progress=False)


def test_a_cut_without_training_is_refused():
    with pytest.raises(lab.ConfigError, match=r"sparsity 0\.9 leaves nothing of 2\.weight.*collapse='allow'"):
        lab.prune(net(), 0.9)
    assert lab.prune(net(), 0.9, collapse="allow")[1].collapsed == ["2.weight"]
    assert not lab.prune(net(), 0.9, scope="layer")[1].collapsed


def test_what_collapsed_goes_on_from_its_checkpoint_when_it_may(blobs, tmp_path):
    path = tmp_path / "c"
    whole = fit(blobs, CUT, collapse="allow")
    first = fit(blobs, CUT, checkpoint=path, every_steps=1)
    assert first.status == fit(blobs, CUT, checkpoint=path).status == "collapsed"
    steps: list[int] = []
    run = fit(blobs, CUT, checkpoint=path, collapse="allow", progress=lambda run: steps.append(run.step))
    assert steps == list(range(first.step, run.steps + 1))  # the cut is made again, and then allowed
    assert run.masks.fingerprint == whole.masks.fingerprint
    refused = fit(blobs, CUT, checkpoint=path)
    assert f"in {path} there is nothing of 2.weight" in str(refused)


def test_an_interruption_at_the_same_step_does_not_hide_it(blobs, tmp_path):
    def interrupt(run: lab.Run) -> None:
        if run.masks.collapsed:
            run.interrupt()

    run = fit(blobs, CUT, checkpoint=tmp_path / "c", every_steps=1, progress=interrupt)
    assert run.status == run.result.status == "collapsed"


def test_in_a_loop_of_ones_own_the_cut_is_refused_before_it_is_made(blobs):
    model = net()
    before = lab.results.tensor_hash(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(lab.ConfigError, match=r"the cut at step 0 would leave nothing of 2\.weight"):
        lab.attach(model, optimizer, methods.OneShot(0.9), steps=2)
    assert lab.results.tensor_hash(model.state_dict()) == before
    assert lab.attach(model, optimizer, methods.OneShot(0.9), steps=2, collapse="allow").masks.collapsed


def test_a_recipe_ends_where_its_network_collapses(blobs):
    options: Any = {"epochs": 1, "rounds": 2, "criterion": "magnitude", "lr": 1e-4, "progress": False}
    trials = lab.recipes.iterative(net(), blobs, 0.97, **options)
    assert trials.last.status == "collapsed"
    allowed = lab.recipes.iterative(net(), blobs, 0.97, collapse="allow", **options)
    assert allowed.last.status == "done"
    assert len(allowed.runs) > len(trials.runs)


def test_a_bias_is_no_layer():
    masks = lab.Masks({"a.weight": torch.tensor([True]), "a.bias": torch.tensor([False]), "b": torch.tensor([False])})
    assert masks.collapsed == ["b"]
