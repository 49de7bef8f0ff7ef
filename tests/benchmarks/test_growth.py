"""How time grows with the number of weights, with layers, and with density."""

import time
from types import SimpleNamespace
from typing import Any

import torch
from benchmarks.history import measured
from benchmarks.lockstep import lockstep, steps
from torch import nn

import pruninglab as lab
from pruninglab import deploy


def test_a_threshold_over_all_weights_takes_less_than_a_second_for_a_hundred_million() -> None:
    torch.set_num_threads(1)
    for number in (10**5, 10**6, 10**7, 15 * 10**6, 10**8):
        source = torch.Generator().manual_seed(0)
        scores = {f"{i}": torch.randn(number // 10, generator=source).abs_() for i in range(10)}
        taken = []
        for _ in range(3):
            began = time.process_time()
            assert lab.keep_top(scores, 0.99).kept == number // 100
            taken.append(time.process_time() - began)
        measured(f"threshold over {number:,} weights, seconds", min(taken))
        assert min(taken) < (1 if number == 10**8 else 0.1)


def test_a_step_grows_with_the_number_of_layers() -> None:
    torch.set_num_threads(1)
    data = lab.load("digits", train=1200, test=100, size=8)

    def model(layers: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), *(nn.Linear(64, 64) for _ in range(layers)), nn.Linear(64, 10))

    sides = {f"{layers}": steps(model(layers), data, batch_size=100) for layers in (25, 100, 400)}
    found = lockstep(sides, rounds=30)
    for layers in (100, 400):
        measured(f"step for each of {layers} layers / of 25", found[f"{layers}"] * 25 / layers)
    assert found["400"] * 25 / 400 <= 1.2


def test_the_engine_grows_with_density() -> None:
    torch.set_num_threads(1)
    images: Any = SimpleNamespace(shape=(1, 28, 28), classes=10)
    model = lab.build("lenet5", images, seed=0).eval()
    x = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    sides: dict[str, Any] = {"dense PyTorch": lambda: model(x)}
    for percent in (50, 20, 10, 5, 1):
        pruned, masks = lab.prune(model, 1 - percent / 100, "random", scope="layer")
        engine = deploy.compile(pruned, x, masks, threads=1)
        sides[f"{percent} %"] = lambda engine=engine: engine(x)
    with torch.no_grad():
        found = lockstep(sides, rounds=200, least=True)
    for name in list(sides)[1:]:
        measured(f"lenet5 with {name} of its weights at random: engine / dense PyTorch", found[name])
    assert found["1 %"] <= found["10 %"] <= found["50 %"]
