"""What a network really costs: parameters, FLOPs, bytes, and milliseconds measured side by side."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Annotated, Any

import numpy as np
import pandas as pd
import scipy
import torch
from torch import Tensor, nn

from ..data.dataset import Data
from ..layers.flops import count
from ..layers.hooks import evaluating
from ..storage import sparse
from ..storage.files import HasModel
from ..typed import Count, CountFromZero, Filled, Range, checked

Rounds = Annotated[int, Range(6), "the least for a 95 % interval of a median"]


@checked
def truth(
    models: Mapping[str, nn.Module | HasModel],
    example: Data | Tensor,
    batches: Annotated[Sequence[Count], Filled()] = (1, 64),
    rounds: Rounds = 21,
) -> pd.DataFrame:
    """Networks (or runs) side by side, one row each, by the names given; the first is what the others are compared to.

    `parameters` counts all, `nonzero` those that are not 0. `flops` of one image are by torch's counter, which a mask
    does not change. Bytes are those of the dense file, of that after gzip and bzip2, and of the sparse file. For each
    size of batch it has the median milliseconds of a forward pass with the 95 % interval, and how many times faster
    than the first that is (see `latency`).
    """
    x = _images(example, max(batches))
    rows: dict[str, dict[str, Any]] = {}
    for name, model in _plain(models).items():
        size = sparse.sizes(model, compressed=True)
        with evaluating(model), torch.no_grad():
            flops = count(model, x[:1].to(_device(model)))
        rows[name] = {
            "parameters": size["parameters"],
            "nonzero": size["nonzero"],
            "flops": flops.dense,
            **{key: size[key] for key in ("bytes", "gzip_bytes", "bzip2_bytes", "sparse_bytes") if key in size},
        }
    for batch in batches:
        timed = latency(models, x[:batch], rounds)
        for name, row in timed.to_dict("index").items():
            rows[str(name)] |= {f"{column}_{batch}": value for column, value in row.items()}
    return pd.DataFrame.from_dict(rows, orient="index")


@checked
def latency(
    models: Annotated[Mapping[str, nn.Module | HasModel | Callable[[Tensor], Any]], Filled()],
    x: Tensor,
    rounds: Rounds = 21,
    warm: CountFromZero = 3,
) -> pd.DataFrame:
    """Milliseconds of a forward pass over the batch `x`: median, 95 % interval of the median, times faster than first.

    The networks take turns in every round, so a machine that slows down slows all of them. `faster` is the median of
    the ratios within rounds, between `faster_low` and `faster_high`. The first `warm` rounds do not count. The
    intervals are those of order statistics, without an assumption about how times are distributed. Besides networks and
    runs it takes anything that can be called on `x`: an engine of `deploy.compile`, or another runtime.
    """
    called = {name: model if callable(model) else model.model for name, model in models.items()}
    calls = {name: _call(model, x) for name, model in called.items()}
    times: dict[str, list[float]] = {name: [] for name in called}
    with ExitStack() as modes, torch.inference_mode():
        for model in called.values():
            if isinstance(model, nn.Module):
                modes.enter_context(evaluating(model))
        for number in range(warm + rounds):
            for name in reversed(calls) if number % 2 else calls:  # so that none always follows the same one
                began = time.perf_counter()
                calls[name]()
                if number >= warm:
                    times[name].append(1000 * (time.perf_counter() - began))
    first = np.array(next(iter(times.values())))
    rows = {}
    for name, spent in times.items():
        middle, low, high = _median(np.array(spent))
        faster, least, most = _median(first / np.array(spent))
        rows[name] = {"ms": middle, "ms_low": low, "ms_high": high}
        rows[name] |= {"faster": faster, "faster_low": least, "faster_high": most}
    return pd.DataFrame.from_dict(rows, orient="index")


def _call(model: Callable[[Tensor], Any], x: Tensor) -> Callable[[], None]:
    device = _device(model) if isinstance(model, nn.Module) else x.device
    x = x.to(device)

    def call() -> None:
        model(x)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return call


def _median(values: np.ndarray) -> tuple[float, float, float]:
    """With the interval that holds it in 95 % of samples of this size, whatever the distribution."""
    ordered = np.sort(values)
    below = int(scipy.stats.binom.ppf(0.025, len(ordered), 0.5))
    low = max(below - 1, 0)
    return float(np.median(ordered)), float(ordered[low]), float(ordered[len(ordered) - 1 - low])


def _plain(models: Mapping[str, nn.Module | HasModel]) -> dict[str, nn.Module]:
    return {name: model if isinstance(model, nn.Module) else model.model for name, model in models.items()}


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _images(example: Data | Tensor, number: int) -> Tensor:
    """As many images, the given ones again and again where there are fewer."""
    if isinstance(example, Data):
        index = torch.arange(number) % len(example.val)
        return next(iter(example.val.batches([index])))[0]
    return example[torch.arange(number) % len(example)]
