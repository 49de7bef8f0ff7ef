"""Wanda and SparseGPT beside slow references in double precision, what they see, and what they keep."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import pruninglab as lab
from pruninglab.criteria import layer_by_layer
from pruninglab.methods import SparseGPT, Wanda
from pruninglab.methods.cuts import sparsegpt

QUIET: dict[str, Any] = {"progress": False, "collapse": "allow", "batch_size": 16, "epochs": 0}
WORDS = ("embeddings", "output")


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 12),
        nn.ReLU(),
        nn.Linear(12, 3),
    )


@pytest.fixture(scope="module")
def photos() -> lab.Data:
    source = torch.Generator().manual_seed(0)
    x, y = torch.randn(96, 2, 6, 6, generator=source), torch.arange(96) % 3
    return lab.wrap(TensorDataset(x[:80], y[:80]), TensorDataset(x[80:], y[80:]), val=0.2, name="photos")


def patches(model: nn.Sequential, x: Tensor, at: int) -> Tensor:
    """What the layer at this place is multiplied with, in double precision: groups x places x inputs."""
    model = copy.deepcopy(model).double().eval()
    given, layer = model[:at](x.double()).detach(), model[at]
    if isinstance(layer, nn.Linear):
        return given[None]
    assert isinstance(layer, nn.Conv2d)
    rows = nn.functional.unfold(given, 3, padding=layer.padding)  # type: ignore[arg-type]
    return rows.unflatten(1, (layer.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2).detach()


def calibration(run: lab.Run) -> Tensor:
    """All training images: the order of a sum does not matter here."""
    return torch.cat([x for x, _ in run.data.train])


# ------------------------------------------------------------------------------------------------------------- Wanda


@pytest.mark.parametrize("at", [0, 2, 5, 7])
def test_scores_are_the_weight_times_the_norm_of_its_inputs(photos, at):
    model = chain().double()
    x = torch.cat([x for x, _ in photos.train]).double()
    scores = lab.criteria.Wanda(batches=99)(model, [(part, part) for part in x.split(16)])[f"{at}.weight"]
    inputs, weight = patches(model, x, at), model.get_parameter(f"{at}.weight").detach()
    groups, _, columns = inputs.shape
    wanted = torch.stack(
        [
            torch.stack([row.abs() * inputs[g].norm(dim=0) for row in rows])
            for g, rows in enumerate(weight.reshape(groups, -1, columns))
        ]
    )
    assert torch.allclose(scores, wanted.view(weight.shape), rtol=1e-6, atol=0)


def test_each_output_loses_its_lowest_on_what_the_pruned_layers_give(photos):
    """The papers' code, layer by layer: sort each row, and cut the first half of it."""
    model = chain()
    run = lab.fit(model, photos, Wanda(0.5, samples=len(photos.train)), **QUIET)
    reference, x = copy.deepcopy(model), calibration(run)
    for at in (0, 2, 5, 7):
        weight, inputs = reference.get_parameter(f"{at}.weight"), patches(reference, x, at)
        rows = weight.detach().double().reshape(len(inputs), -1, inputs.shape[-1])
        order = (rows.abs() * inputs.norm(dim=1)[:, None]).argsort(-1)
        cut = torch.zeros_like(rows, dtype=torch.bool).scatter_(-1, order[..., : order.shape[-1] // 2], True)
        weight.data[cut.view(weight.shape)] = 0
        assert torch.equal(run.model.get_parameter(f"{at}.weight"), weight)
    assert run.sparsity == 0.5
    assert [line["layer"] for line in run[Wanda].errors] == ["0.weight", "2.weight", "5.weight", "7.weight"]


def test_all_of_them_by_one_threshold_where_it_is_asked_for(photos):
    by_row, by_layer = (lab.fit(chain(), photos, Wanda(0.5, scope=scope), **QUIET) for scope in ("row", "layer"))
    assert by_row.masks["5.weight"].sum(1).unique().tolist() == [64]
    assert len(by_layer.masks["5.weight"].sum(1).unique()) > 1
    assert by_layer.masks.kept_by_layer == by_row.masks.kept_by_layer


# --------------------------------------------------------------------------------------------------------- SparseGPT


def reference_solution(
    weight: Tensor, hessian: Tensor, sparsity: float, block: int, pattern: tuple[int, int] | None
) -> tuple[Tensor, Tensor]:
    """The paper's Algorithm 1 without its factor: for every input the inverse of H over it and all inputs after it."""
    weight, columns = weight.clone(), weight.shape[1]
    kept = torch.ones_like(weight, dtype=torch.bool)
    inverses = [torch.linalg.inv(hessian[j:, j:]) for j in range(columns)]
    diagonal = torch.stack([inverse[0, 0] for inverse in inverses])
    for j in range(columns):
        width = block if pattern is None else pattern[1]
        if j % width == 0:
            own = slice(j, min(j + width, columns))
            scores = weight[:, own].square() / diagonal[own]
            if pattern is None:
                lowest = scores.flatten().argsort()[: round(scores.numel() * sparsity)]
                kept[:, own] = kept[:, own].flatten().index_fill(0, lowest, False).view(scores.shape)
            else:
                lowest = scores.argsort(1)[:, : pattern[1] - pattern[0]]
                kept[:, own] = kept[:, own].scatter(1, lowest, False)
        error = torch.where(kept[:, j], 0, weight[:, j]) / diagonal[j]
        weight[:, j:] -= error[:, None] * inverses[j][0]
    return torch.where(kept, weight, 0), kept


@pytest.mark.parametrize(
    ("block", "pattern"), [(4, None), (6, None), (128, None), (4, (2, 4)), (8, (1, 4)), (6, (2, 3))]
)
def test_weights_are_those_of_the_paper_without_its_factor(block, pattern):
    torch.manual_seed(0)
    x, weight = torch.randn(60, 12).double() @ torch.randn(12, 12).double(), torch.randn(6, 12).double()
    hessian = x.T @ x / 60 + 0.01 * torch.eye(12).double()
    within = torch.ones_like(weight, dtype=torch.bool)
    cuts = sparsegpt._cuts(within[None], 36, block)[0]
    found, kept = sparsegpt.solved(weight, sparsegpt.factor(hessian), within, cuts, block, pattern)
    sparsity = 0.5 if pattern is None else 1 - pattern[0] / pattern[1]
    wanted, mask = reference_solution(weight, hessian, sparsity, block, pattern)
    assert torch.equal(kept, mask)
    assert torch.allclose(found, wanted, rtol=1e-8, atol=1e-8)
    assert not found[~kept].any()


def test_a_run_gives_every_layer_the_reference_solution(photos):
    model, samples = chain(), len(photos.train)
    run = lab.fit(model, photos, SparseGPT(0.5, block=8, samples=samples), **QUIET)
    reference, x = copy.deepcopy(model), calibration(run)
    for at in (0, 2, 5, 7):
        inputs, weight = patches(reference, x, at), reference.get_parameter(f"{at}.weight")
        rows = weight.detach().double().reshape(len(inputs), -1, inputs.shape[-1])
        moments = inputs.transpose(1, 2) @ inputs / inputs.shape[1]
        solutions = []
        for own, moment in zip(rows, moments, strict=True):
            damp = 0.01 * moment.diagonal().mean() * torch.eye(len(moment)).double()
            solutions.append(reference_solution(own, moment + damp, 0.5, 8, None)[0])
        weight.data = torch.stack(solutions).view(weight.shape).float()
        found = run.model.get_parameter(f"{at}.weight")
        assert torch.allclose(found, weight, rtol=1e-4, atol=1e-4 * float(weight.detach().abs().max()))
    assert run.sparsity == 0.5


def test_what_is_left_makes_up_for_what_was_cut(photos):
    """The error of a layer's output is the least by SparseGPT; magnitude knows nothing of the inputs."""
    runs = {m: lab.fit(chain(), photos, m(0.5, samples=64), **QUIET) for m in (SparseGPT, Wanda)}
    first = {method: run[method].errors[0]["error"] for method, run in runs.items()}
    assert 0 < first[SparseGPT] < first[Wanda] < 1


# ------------------------------------------------------------------------------------------------------ what is kept


@pytest.mark.parametrize("method", [Wanda, SparseGPT])
@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (1, 2)])
def test_of_every_m_inputs_n_stay(photos, method, pattern):
    n, m = pattern
    run = lab.fit(chain()[2:], wide(), method(1 - n / m, pattern), **QUIET)
    assert run.status == "done"
    for mask in run.masks.values():
        by_input = mask.movedim(1, -1)
        assert (by_input.unflatten(-1, (-1, m)).sum(-1) == n).all()


def wide() -> lab.Data:
    x, y = torch.randn(40, 8, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3
    return lab.wrap(TensorDataset(x[:30], y[:30]), TensorDataset(x[30:], y[30:]), name="wide")


@pytest.mark.parametrize("method", [Wanda, SparseGPT])
@pytest.mark.parametrize("earlier", [0.1, 0.5, 0.79])
def test_counts_are_exact_and_what_was_cut_stays_cut(photos, method, earlier):
    before = lab.fit(chain(), photos, lab.methods.OneShot(earlier), **QUIET)
    run = lab.fit(before, photos, method(0.8), **QUIET)
    assert (run.masks & ~before.masks).kept == 0
    assert run.masks.kept == run.masks.total - int(0.8 * run.masks.total + 0.5)
    assert all(not run.model.get_parameter(name)[~mask].any() for name, mask in run.masks.items())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), min_size=24, max_size=24), st.integers(1, 7), st.floats(0, 1))
def test_cuts_are_shared_by_the_blocks_as_far_as_these_have_weights(alive, block, share):
    within = torch.tensor(alive).view(2, 2, 6)
    keep = round(share * int(within.sum()))
    cuts = sparsegpt._cuts(within, keep, block)
    assert sum(map(sum, cuts)) == int(within.sum()) - keep
    for own, counts in zip(within, cuts, strict=True):
        parts = own.split(block, 1)
        assert all(0 <= cut <= int(part.sum()) for cut, part in zip(counts, parts, strict=True))


def test_a_layer_is_seen_behind_the_layers_that_were_changed_before_it(photos):
    model, (x, _) = chain(), next(iter(photos.train.batches(20)))
    names = list(lab.prunable(model))
    for name, moment in layer_by_layer(model, [(x[:7], x), (x[7:], x)], list(reversed(names)), "this"):
        at = int(name.partition(".")[0])
        inputs = patches(model, x, at)
        assert torch.allclose(moment, inputs.transpose(1, 2) @ inputs / inputs.shape[1], rtol=1e-4, atol=1e-5)
        model.get_parameter(name).data.mul_(0.5)


def test_a_weight_that_is_used_twice_has_the_inputs_of_both_places():
    layer = nn.Linear(4, 4, bias=False).double()
    twice = nn.Sequential(layer, nn.ReLU(), layer)
    x = torch.randn(9, 4).double()
    ((_, moment),) = layer_by_layer(twice, [(x[:4], x), (x[4:], x)], ["0.weight"], "this")
    both = torch.cat([x, twice[:2](x)]).detach()
    assert torch.allclose(moment[0], both.T @ both / 18)


# -------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("method", [Wanda, SparseGPT])
@pytest.mark.parametrize(
    ("sparsity", "pattern", "message"),
    [(0.6, (2, 4), r"expected n < m, and sparsity=0.5"), (0.0, (4, 4), "n < m"), (0.5, (2, 4, 6), "2 values")],
)
def test_a_pattern_that_is_none_is_refused(method, sparsity, pattern, message):
    with pytest.raises(lab.ConfigError, match=message):
        method(sparsity, pattern)


@pytest.mark.parametrize("method", [Wanda, SparseGPT])
def test_embeddings_are_in_or_out_by_a_word(method):
    data = lab.load("code", train=40, test=10, size=16)
    model = lab.build("gpt", data, width=8, layers=1, heads=2)
    with pytest.raises(lab.ConfigError, match=r"not place.weight, token.weight; leave these out with `skip`"):
        lab.fit(model, data, method(0.5), **QUIET)
    run = lab.fit(model, data, method(0.5), skip=WORDS, **QUIET)
    assert [name.split(".")[-2] for name in run.masks] == ["qkv", "out_proj", "fc1", "fc2"]
    assert run.sparsity == 0.5
    assert list(lab.prunable(model, skip="output"))[-1] == "blocks.0.fc2.weight"
    tied = lab.build("gpt", data, width=8, layers=1, heads=2, tied=True)
    assert list(lab.prunable(tied, skip="output")) == ["place.weight", *run.masks]


def test_the_output_of_a_foreign_model_is_the_one_that_it_names():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(3, 2), nn.Linear(3, 3)

        def get_output_embeddings(self) -> nn.Module:
            return self.head

    assert list(lab.prunable(Named(), skip="output")) == ["body.weight"]


# -------------------------------------------------------------------------------------------------- what it is worth


def bits(data: lab.Data, dense: lab.Run, *made: lab.Method) -> list[float]:
    options: Any = {**QUIET, "batch_size": 32, "skip": WORDS}
    runs = [lab.fit(dense, data, method, **options) for method in made]
    return [lab.train.bits(run.result.accuracy["test"]["loss"]) for run in runs]


def trained(seed: int, train: int, size: int, width: int, layers: int, epochs: int, lr: float) -> tuple[Any, Any]:
    data = lab.load("code", train=train, test=300, size=size, seed=seed)
    model = lab.build("gpt", data, width=width, layers=layers, heads=width // 16, seed=seed)
    return data, lab.fit(model, data, epochs=epochs, lr=lr, batch_size=32, seed=seed, progress=False)


@pytest.mark.slow
def test_both_beat_magnitude_in_each_layer_on_text():
    """Without fine-tuning. The papers compare with magnitude that cuts every layer alike."""
    made = SparseGPT(0.6), Wanda(0.6), lab.methods.OneShot(0.6, scope="layer")
    found = bits(*trained(0, 800, 32, 32, 2, 20, 1e-2), *made)
    assert found == sorted(found)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_both_beat_magnitude_in_each_layer_on_a_larger_network(seed):
    """Global magnitude is printed too: it may give each layer its own share, and is harder to beat on a small net."""
    net = trained(seed, 6000, 64, 64, 3, 6, 3e-3)
    for sparsity in (0.5, 0.6):
        magnitudes = [lab.methods.OneShot(sparsity, scope=scope) for scope in ("layer", "global")]
        found = bits(*net, SparseGPT(sparsity), Wanda(sparsity), *magnitudes)
        print(f"seed {seed}, {sparsity:.0%}: {[round(one, 3) for one in found]}")
        assert max(found[:2]) < found[2]
