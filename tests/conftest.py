"""What every test starts from: one thread, exact denormals, no window, its own cache, the same examples each time."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; the kernels and workers of a test inherit it

import hypothesis
import matplotlib
import nbformat
import pytest
import torch
from kernels import Forked
from nbformat.v4 import new_code_cell, new_notebook
from together import Together
from torch.utils.data import TensorDataset

import pruninglab as lab

# Not the environment variable: a notebook kernel started by a test would inherit that and show no figure.
matplotlib.use("Agg")

hypothesis.settings.register_profile("same", derandomize=True, database=None, deadline=None, max_examples=50)
hypothesis.settings.register_profile("search", deadline=None, max_examples=2000)  # --hypothesis-profile=search
hypothesis.settings.load_profile("same")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("nbval", False) and hasattr(os, "fork"):
        config.pluginmanager.register(Forked())


def pytest_itemcollected(item: pytest.Item) -> None:
    """The folded answer of an exercise, whose outputs nobody compares, belongs to `make test-all`."""
    if getattr(item, "cell", {}).get("metadata", {}).get("jupyter", {}).get("source_hidden"):
        item.add_marker("slow")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together:
    """Not by `xdist_group`: pytest 9.2 ignores the group that xdist 3.8 writes into the name of a test."""
    return Together(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are cores: a test that waits for a browser or a signal leaves its core to others."""
    return min((os.cpu_count() or 1) + 1, 4)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Generated data is kept for one session, and shared by its workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "pruninglab-cache"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNINGLAB_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def arithmetic() -> None:
    """Undo what the test before may have set for the whole process."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def blobs() -> lab.Data:
    """Four clouds of points in ten dimensions: 160 to train on, 40 held out, 100 to test."""
    source = torch.Generator().manual_seed(0)
    y = torch.arange(300) % 4
    x = 2.0 * torch.randn(4, 10, generator=source)[y] + torch.randn(300, 10, generator=source)
    return lab.wrap(TensorDataset(x[:200], y[:200]), TensorDataset(x[200:], y[200:]), val=0.2, name="blobs")


@pytest.fixture
def notebook(tmp_path: Path) -> Callable[..., Path]:
    """Writes a notebook of these cells, the first with its parameters, and returns its path."""

    def write(parameters: str, *cells: str, name: str = "tiny.ipynb") -> Path:
        tagged = new_code_cell(parameters, metadata={"tags": ["parameters"]})
        made = new_notebook(cells=[tagged, *map(new_code_cell, cells)])
        path = tmp_path / name
        path.write_text(nbformat.writes(made), encoding="utf-8")
        return path

    return write
