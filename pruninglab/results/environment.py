"""What a record says of the machine and the versions that made it."""

import functools
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from ..identity import __version__


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
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
    }


@functools.cache
def _commit() -> str | None:
    """The commit of the code that runs, with a + where it was changed since; None where there is no repository."""
    command = ["git", "-C", str(Path(__file__).parent.parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


@functools.cache
def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
