"""What the README and the notebooks promise of the defaults, on the real digits."""

import statistics

import pytest

import pruninglab as lab

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dense() -> list[tuple[lab.Data, lab.Run]]:
    """LeNet-5 with nothing but defaults, one for each seed."""
    runs = []
    for seed in range(5):
        data = lab.load("digits", seed=seed)
        runs.append((data, lab.fit(lab.build("lenet5", data, seed=seed), data, epochs=15, seed=seed, progress=False)))
    return runs


def test_dense_lenet5_reaches_98_percent_on_digits(dense):
    accuracies = [run.result.accuracy["test"]["accuracy"] for _, run in dense]
    print(f"dense: {statistics.mean(accuracies):.4f} {accuracies}")
    assert statistics.mean(accuracies) >= 0.98


def test_magnitude_beats_a_random_mask_by_20_points_at_90_percent_without_fine_tuning(dense):
    def mean(criterion: str) -> float:
        cut = [lab.fit(run, data, lab.methods.OneShot(0.9, criterion), epochs=0, progress=False) for data, run in dense]
        return statistics.mean(run.result.accuracy["test"]["accuracy"] for run in cut)

    magnitude, random = mean("magnitude"), mean("random")
    print(f"at 90 % without fine-tuning: magnitude {magnitude:.4f}, random {random:.4f}")
    assert magnitude >= random + 0.2
