"""Speeds as ratios that a noisy machine cannot bend: one step of each side in turn, inside one process."""

import statistics
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any

import torch
from torch import nn

import pruninglab as lab
from pruninglab.train import machine
from pruninglab.train.fit import _batches, _begun, _set_out, _step
from pruninglab.train.method import fresh
from pruninglab.train.options import resolved


def lockstep(
    sides: Mapping[str, Callable[[], object]], rounds: int = 60, warm: int = 3, least: bool = False
) -> dict[str, float]:
    """The time of each side over that of the first: medians of ratios that are taken round by round.

    Every second round goes the other way, so that no side always follows the same one. `least` compares the fastest
    turns instead: what is over before another job can take the processor away.
    """
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(-warm, rounds):
        for name in sorted(sides, reverse=bool(number % 2)) if number % 2 else sides:
            began = time.perf_counter()
            sides[name]()
            if number >= 0:
                taken[name].append(time.perf_counter() - began)
    first = taken[next(iter(taken))]
    if least:
        return {name: min(times) / min(first) for name, times in taken.items()}
    return {name: statistics.median(map(float.__truediv__, times, first)) for name, times in taken.items()}


def steps(model: nn.Module, data: lab.Data, *methods: lab.Method, **options: Any) -> Callable[[], object]:
    """Each call is one more step of a training by `fit`'s own loop."""
    stepping = _stepping(model, data, methods, {"epochs": 1000, "device": "cpu", **options})
    next(stepping)
    return lambda: next(stepping)


def _stepping(
    model: nn.Module, data: lab.Data, methods: tuple[lab.Method, ...], options: dict[str, Any]
) -> Generator[None]:
    chosen, session = resolved(options)
    run = _begun(model, data, [fresh(method) for method in methods], chosen, session)
    torch.set_flush_denormal(True)  # as `machine.settings` does
    machine.channels_last(run.model, run.device).__enter__()
    _set_out(run, None, session.masks)
    yield
    broken = torch.zeros(())
    while True:
        for run.x, run.y in _batches(run):  # noqa: B020 (these are attributes of it)
            _step(run, broken)
            yield
        run.epoch += 1
