"""Every method trained in this process, which may be one of several.

Arguments: the folder for what came out, and `float32` or `float64`.

`test_ranks.py` starts it. Its name keeps it from being collected as a test.
"""

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from test_contract import METHODS, REFUSED, build

import pruninglab as lab

EXACT = ("Gradual", "Gradual-layer", "L0", "L0-steered-channel", "L0-steered-schedule", "Silence-scheduled")
"""Trained in float64 too: there rounding decides no cut."""


def in_float64(data: lab.Data) -> lab.Data:
    train, val, test = (next(iter(split.batches(len(split)))) for split in (data.train, data.val, data.test))
    pairs = [(x.double(), y) for x, y in (train, test, val)]
    return lab.wrap(pairs[0], pairs[1], val=pairs[2])


def trained(kind: str, data: lab.Data, dtype: torch.dtype, names: Iterable[str]) -> dict[str, object]:
    found = {}
    given = in_float64(data) if dtype == torch.float64 else data
    how: dict[str, Any] = {"epochs": 2, "batch_size": 25, "lr": 1e-3, "progress": False, "device": "cpu"}
    how["collapse"] = "allow"
    for name in names:
        if (kind, name) in REFUSED or "pattern" in name or "N2N" in name:
            continue
        run = lab.fit(build(kind, data, 0).to(dtype), given, *METHODS[name], **how)
        found[f"{kind} {name}"] = {
            "loss": [entry["loss"] for entry in run.history],
            "kept": [entry["kept"] for entry in run.history],
            "masks": run.masks.fingerprint,
            "status": run.status,
        }
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    data = lab.load("digits", train=120, test=40, size=16)
    exact = sys.argv[2] == "float64"
    found = (
        trained("residual", data, torch.float64, EXACT) if exact else trained("residual", data, torch.float32, METHODS)
    )
    rank = os.environ.get("RANK", "one")
    (Path(sys.argv[1]) / f"{rank}.json").write_text(json.dumps(found))
