"""What trains more than once: rounds, budgets, and going on from a folder."""

import pytest
import torch
from torch import nn

import pruninglab as lab
from pruninglab import identity, recipes
from pruninglab.recipes import iterative


def mlp(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 4))


def test_each_round_cuts_the_same_share_of_the_survivors(blobs):
    runs = iterative(mlp(), blobs, 0.9, rounds=4, epochs=2, finetune=1, progress=False)
    kept = [run.masks.kept for run in runs]
    assert kept == [448, *(448 - int(448 * (1 - 0.1 ** (r / 4)) + 0.5) for r in range(1, 5))]
    assert [run.result.steps["before"] for run in runs] == [
        0,
        *(runs[0].step + r * runs[1].step for r in range(4)),
    ]
    assert {run.origin["dense"] for run in runs[1:]} == {runs[1].origin["weights"]}
    assert runs[1].result.config["lr"] == pytest.approx(1e-4)


def test_the_default_criterion_is_a_quality_factor(blobs):
    """One threshold on |w| / deviation: what is kept of each layer lies above the same multiple of its deviation."""
    dense, pruned = iterative(mlp(), blobs, 0.5, rounds=1, epochs=1, finetune=1, finetune_lr=0.0, progress=False)
    factors = []
    for name, weight in lab.prunable(dense.model).items():
        normed = weight.detach().abs() / weight.detach().std(correction=0)
        kept = pruned.masks[name]
        factors.append((normed[~kept].max().item(), normed[kept].min().item()))
    assert max(low for low, _ in factors) <= min(high for _, high in factors) + 1e-6


def test_dropout_shrinks_with_the_connections_it_acts_on(blobs):
    runs = iterative(mlp(dropout=0.4), blobs, 0.75, rounds=3, epochs=1, progress=False)
    shares = [int(run.masks["3.weight"].sum()) / 128 for run in runs]
    assert [run.model.get_submodule("2").p for run in runs] == pytest.approx([0.4 * share**0.5 for share in shares])
    assert runs[0].model.get_submodule("2").p == 0.4


def test_a_folder_is_gone_on_from(blobs, tmp_path):
    def go(rounds: int) -> list[lab.Run]:
        schedule = lab.Linear(0.8)
        return iterative(mlp(), blobs, schedule, rounds=rounds, epochs=1, folder=tmp_path, progress=False)

    first = go(2)
    assert sorted(p.name for p in tmp_path.glob("*.json")) == ["round-00.json", "round-01.json", "round-02.json"]
    times = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.safetensors")}
    second = go(2)
    assert times == {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.safetensors")}  # nothing was trained
    assert identity.tensor_hash(first[-1].model.state_dict()) == identity.tensor_hash(second[-1].model.state_dict())


def test_a_break_in_the_last_step_ends_the_recipe_and_a_finished_run_is_gone_on_from(blobs):
    """The training is whole then, but the person at the keys wants no further one."""

    def in_the_last_step(run: lab.Run) -> None:
        if run.step == run.steps:
            run.interrupt()

    (dense,) = iterative(mlp(), blobs, 0.5, rounds=2, epochs=1, progress=in_the_last_step)
    assert dense.status == "done"
    assert len(iterative(dense, blobs, 0.5, rounds=2, epochs=1, progress=False)) == 3
    assert len(recipes.admm(dense, blobs, 0.5, epochs=1, progress=in_the_last_step)) == 2


def test_a_sparse_start_and_no_retraining_are_taken_as_they_are(blobs):
    sparse = lab.fit(mlp(), blobs, lab.methods.OneShot(0.8), epochs=1, progress=False)
    runs = iterative(sparse, blobs, 0.9, rounds=3, epochs=2, finetune=0, progress=False)
    assert [run.masks.sparsity for run in runs] == pytest.approx([0.8, 0.8, 0.8, 0.9], abs=0.003)
    assert [run.step for run in runs[1:]] == [0, 0, 0]
    with pytest.raises(lab.ConfigError, match="sets masks by itself"):
        iterative(sparse, blobs, 0.9, epochs=1, masks=sparse.masks)


def test_a_finished_run_is_the_dense_start(blobs):
    dense = lab.fit(mlp(), blobs, epochs=3, progress=False)
    runs = iterative(dense, blobs, 0.5, rounds=1, epochs=2, progress=False)
    assert runs[0] is dense
    assert runs[1].result.steps["before"] == dense.step
    with pytest.raises(lab.ConfigError, match="rounds=0"):
        iterative(dense, blobs, 0.5, rounds=0, epochs=1)
