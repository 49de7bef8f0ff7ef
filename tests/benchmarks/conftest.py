"""Benchmarks use all cores, as a person at the machine would."""

import os

import pytest
import torch


@pytest.fixture(autouse=True)
def all_cores(arithmetic: None) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
