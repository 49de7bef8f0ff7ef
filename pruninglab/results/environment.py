"""What a record says of the machine and the versions that made it."""

import functools
import os
import platform
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import torch

from ..version import __version__

NOT_DETERMINISTIC = {
    "cuda": (
        "backward pass of adaptive and overlapping pooling",
        "backward pass of attention in fused kernels",
        "sums by scatter, index_add, index_put and bincount",
        "backward pass of interpolation",
    ),
    "mps": ("any operation",),
}
"""By device, what may have other last bits each time, although the seed is the same and convolutions are exact."""


def environment(device: str) -> dict[str, Any]:
    """Versions and hardware."""
    return {
        "pruninglab": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "libraries": _libraries(),
        "threads": torch.get_num_threads(),
        "threads_between_operations": torch.get_num_interop_threads(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "not_deterministic": list(NOT_DETERMINISTIC.get(device.partition(":")[0], ())),
        "command": [_shared(word) for word in sys.argv],
    }


def with_threads(number: int) -> dict[str, str]:
    """What the environment of a new process says of its threads: how many, and that they sleep while they wait.

    OpenMP's threads spin otherwise, and a training beside another job becomes several times slower.
    """
    libraries = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(number))
    return {**ASLEEP, **libraries}


ASLEEP = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}


def _shared(word: str) -> str:
    """A word of the command line without what is this machine's alone: a path from here, or its last part."""
    if not os.path.isabs(word):
        return word
    path, here = Path(word), Path.cwd()
    if path.name == "__main__.py":
        return path.parent.name
    return str(path.relative_to(here)) if path.is_relative_to(here) else path.name


@functools.cache
def _commit() -> str | None:
    """The commit of the code that runs, with a + where it was changed since.

    None where the code lies in no repository of its own: a package that was installed into another project is not at
    that project's commit.
    """
    package = Path(__file__).resolve().parent.parent
    if _project(package.parent) != package.name:
        return None
    top = _git(package, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != package.parent:
        return None
    return _git(package, "describe", "--always", "--dirty=+", "--exclude=*")


def _project(folder: Path) -> str | None:
    """The name of the project that a folder is the root of."""
    try:
        return tomllib.loads((folder / "pyproject.toml").read_text())["project"]["name"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _git(folder: Path, *words: str) -> str | None:
    """What git says of the repository that this folder lies in, whatever repository the caller is in."""
    elsewhere = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=elsewhere)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@functools.cache
def _libraries() -> dict[str, str]:
    """The versions of what computes: other versions may round otherwise."""
    built = torch.__config__.show()
    patterns = {"oneDNN": r"MKL-DNN v(\S+)", "MKL": r"Math Kernel Library Version (\S+)", "BLAS": r"BLAS_INFO=(\w+)"}
    return {name: found[1] for name, pattern in patterns.items() if (found := re.search(pattern, built))}


@functools.cache
def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
