"""One bit of a file is another: whoever reads the file says so and names it, whatever kind of file it is."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pruninglab as lab
from pruninglab import storage
from pruninglab.data import stored
from pruninglab.deploy import build
from pruninglab.sweep import cell

KINDS = ("checkpoint", "the one before it", "snapshot", "state", "record", "cell", "sparse", "compressed sparse",
         "compiled code", "drawn data")  # fmt: skip
FEW, ALL = 6, 100
"""Bits of each kind, of which a third lie in the first 400 bytes, where headers are."""


def noticing(
    kind: str, blobs: lab.Data, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Callable[[], Any]]:
    """A whole file of this kind, and what reads it."""
    torch.manual_seed(0)
    model, path = nn.Sequential(nn.Linear(10, 4)), folder / "file.x"
    options: Any = {"epochs": 2, "collapse": "allow", "progress": False}

    def fit(**more: Any) -> lab.Run:
        return lab.fit(model, blobs, lab.methods.OneShot(0.5), **options, **more)

    match kind:
        case "checkpoint":
            fit(checkpoint=path)
            storage.files.previous(path).unlink()
            return path, lambda: fit(checkpoint=path)
        case "the one before it":
            fit(checkpoint=path)
            path.unlink()
            spare = storage.files.previous(path)
            return spare, lambda: storage.load_state(spare)
        case "snapshot":
            fit().snapshot().save(path)
            return path, lambda: lab.Snapshot.load(path)
        case "state":
            storage.save_state(path, {"a": torch.eye(9), "b": [1, "x"]})
            return path, lambda: storage.load_state(path)
        case "record":
            fit(record=path)
            return path, lambda: lab.Result.read(path)
        case "cell":
            storage.files.save_json(path, cell._made("n", {"x": 3}, "done", "", 1.0))
            return path, lambda: lab.results.tables.read_cell(path)
        case "sparse" | "compressed sparse":
            storage.save(fit(), path, entropy="zlib" if "compressed" in kind else None)
            return path, lambda: storage.load(path)
        case "compiled code":
            path.write_bytes(random.Random(0).randbytes(10_000))
            storage.write_atomic(build._checksum(path), build._digest(path))

            def loaded() -> None:
                try:
                    build._loaded(path)
                except OSError as error:  # it is built again
                    raise lab.DataError(str(error)) from None

            monkeypatch.setattr(build.ctypes, "CDLL", lambda name: pytest.fail(f"{name} was run"))
            return path, loaded
    monkeypatch.setenv("PRUNINGLAB_CACHE", str(folder))
    whole = stored.cached(drawn, 5, 0)
    (path,) = folder.glob("*.data")

    def read() -> None:
        DRAWN.clear()
        again = stored.cached(drawn, 5, 0)
        assert all(map(torch.equal, again, whole))
        if DRAWN:  # it was drawn again
            raise lab.DataError(str(path))

    return path, read


DRAWN: list[int] = []


def drawn(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    DRAWN.append(n)
    return torch.arange(16.0 * n).view(n, 1, 4, 4), torch.arange(n)


def flips(kind: str, blobs: lab.Data, folder: Path, monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    path, read = noticing(kind, blobs, folder, monkeypatch)
    chance, whole = random.Random(kind), path.read_bytes()
    places = chance.sample(range(8 * len(whole)), bits - bits // 3)
    places += chance.sample(range(8 * min(len(whole), 400)), bits // 3)
    for bit in places:
        altered = bytearray(whole)
        altered[bit // 8] ^= 1 << bit % 8
        path.write_bytes(altered)
        with pytest.raises(lab.DataError, match=path.name):
            read()
    for size in (0, 5, min(300, len(whole) // 2), len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(lab.DataError, match=path.name):
            read()


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_noticed_and_the_file_is_named(blobs, tmp_path, monkeypatch, kind):
    flips(kind, blobs, tmp_path, monkeypatch, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_flipped_bits_are_noticed(blobs, tmp_path, monkeypatch, kind):
    flips(kind, blobs, tmp_path, monkeypatch, ALL)
