"""Every method trained in this process, which may be one of several; argument: the folder for what came out.

`test_ranks.py` starts it. Its name keeps it from being collected as a test.
"""

import json
import os
import sys
from pathlib import Path

import torch
from test_contract import METHODS, REFUSED, build

import pruninglab as lab


def trained(kind: str, data: lab.Data) -> dict[str, object]:
    found = {}
    for name, made in METHODS.items():
        if (kind, name) in REFUSED or "pattern" in name or "N2N" in name:
            continue
        run = lab.fit(build(kind, data, 0), data, *made, epochs=2, batch_size=25, lr=1e-3, progress=False, device="cpu")
        found[f"{kind} {name}"] = {
            "loss": [entry["loss"] for entry in run.history],
            "kept": [entry["kept"] for entry in run.history],
            "masks": run.masks.fingerprint,
            "status": run.status,
        }
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = trained("residual", lab.load("digits", train=120, test=40, size=16))
    rank = os.environ.get("RANK", "one")
    (Path(sys.argv[1]) / f"{rank}.json").write_text(json.dumps(found))
