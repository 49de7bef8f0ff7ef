"""Text without a download: `code`, the bytes of the sources of Python's own standard library."""

import hashlib
import os
import platform
import sysconfig
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from ..randomness import key

LENGTH, TRAIN, TEST = 128, 20_000, 2_000
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "encodings", "pydoc_data", "__pycache__"}
"""Other people's code, tests that some systems do not install, and tables of data in the form of code."""
BYTES = tuple(repr(chr(byte)) for byte in range(256))
SOURCE = f"the standard library of Python {platform.python_version()}"

Pairs = tuple[Tensor, Tensor]


@cache
def sources() -> list[tuple[str, bytes]]:
    """Name and content of each file, in the order of the names."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted((path.relative_to(root).as_posix(), path.read_bytes()) for path in files)


def is_tested(name: str) -> bool:
    """Whether a file is of the test split: one in ten, by a hash of its name."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10 == 0


def windows(files: list[bytes], length: int) -> tuple[Tensor, Tensor]:
    """Each file in pieces of length + 1 bytes that share their ends; and the number of the file of each piece.

    A last piece that is too short is left out.
    """
    pieces = [np.frombuffer(content, np.uint8) for content in files]
    counts = [max(len(piece) - 1, 0) // length for piece in pieces]
    taken = [
        np.lib.stride_tricks.sliding_window_view(piece, length + 1)[::length][:count]
        for piece, count in zip(pieces, counts, strict=True)
        if count
    ]
    both = np.concatenate(taken) if taken else np.zeros((0, length + 1), np.uint8)
    return torch.from_numpy(both), torch.arange(len(files)).repeat_interleave(torch.tensor(counts, dtype=torch.long))


def read_code(length: int | None, train: int | None, test: int | None) -> tuple[Pairs, Pairs, Tensor]:
    """Training and test pairs, and of each training window the number of its file.

    x are the bytes of a window and y the byte that follows at each place: (n, length) each. The test split has files of
    its own.
    """
    found = sources()
    parts = [[content for name, content in found if is_tested(name) == tested] for tested in (False, True)]
    pool, tested = (windows(part, length or LENGTH) for part in parts)
    if not min(len(pool[0]), len(tested[0])):
        raise ConfigError(f"{SOURCE} has too few files here of {length or LENGTH} bytes and more: give a smaller size")
    x, files = _some(*pool, train or TRAIN, train, "train")
    test_x, _ = _some(*tested, test or TEST, test, "test")
    return _shifted(x), _shifted(test_x), files


def _some(both: Tensor, files: Tensor, n: int, asked: int | None, part: str) -> tuple[Tensor, Tensor]:
    """`n` of the windows in their order; all of them, where by default there are fewer."""
    if asked and asked > len(both):
        raise ConfigError(f"{part}={asked:,} windows were asked for, code has {len(both):,}: ask for at most that many")
    at = torch.randperm(len(both), generator=torch.Generator().manual_seed(key(0, "subset")))[:n].sort().values
    return both[at], files[at]


def _shifted(both: Tensor) -> Pairs:
    return both[:, :-1].long(), both[:, 1:].long()
