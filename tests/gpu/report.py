"""Everything that needs a GPU, in one command: `make gpu` writes runs/gpu/report.json, and skips where there is none.

Contract: every method trains in fp32 and in bf16 and keeps its target and its zeros. Numerics: scores and a training
beside those of the CPU, the same seed twice, and what waited for the device in a plain step. Speeds: steps a second.
"""

import json
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import test_contract as contract

import pruninglab as lab
from pruninglab import identity, methods
from pruninglab.criteria.registry import BY_NAME
from pruninglab.results.environment import environment

SECONDS = 440  # of the eight minutes; what does not fit is listed in the report
Check = tuple[str, Callable[[], Any]]
PLAIN: dict[str, Any] = {"progress": False, "seed": 1}


def main(device: str = "cuda", out: Path = Path("runs/gpu/report.json"), seconds: float = SECONDS) -> int:
    if device == "cuda" and not torch.cuda.is_available():
        print("make gpu: torch finds no CUDA device here, so there is nothing to run. No report is written.")
        return 0
    began = time.perf_counter()
    results: dict[str, Any] = {}
    left_out = []
    for name, check in checks(device):
        if time.perf_counter() - began > seconds:
            left_out.append(name)
            continue
        results[name] = outcome(check)
        print(f"{name}: {results[name]['status']}", flush=True)
    failed = [name for name, result in results.items() if result["status"] == "failed"]
    report = {
        "environment": environment(device),
        "seconds": round(time.perf_counter() - began, 1),
        "failed": failed,
        "left_out": left_out,
        "results": results,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1))
    print(f"{len(results) - len(failed)} of {len(results)} checks passed, {len(left_out)} left out: {out}")
    return int(bool(failed))


def outcome(check: Callable[[], Any]) -> dict[str, Any]:
    began = time.perf_counter()
    try:
        found, status = check(), "passed"
    except Exception:
        found, status = traceback.format_exc(limit=-4), "failed"
    return {"status": status, "seconds": round(time.perf_counter() - began, 2), "found": found}


def checks(device: str) -> Iterator[Check]:
    """Numerics and speeds first: they are few, and the contract fills the time that is left."""
    nets = {name: net(name) for name in contract.NETS}
    for name, (model, data) in nets.items():
        yield f"numerics: {name} beside the CPU", lambda m=model, d=data: beside_cpu(m, d, device)
        yield f"numerics: {name} twice", lambda m=model, d=data: twice(m, d, device)
        yield f"numerics: waits of {name}", lambda m=model, d=data: waits(m, d, device)
    for name in BY_NAME:
        yield f"numerics: scores of {name}", lambda n=name: scores(n, *nets["lenet5"], device)
    for name, (model, data) in nets.items():
        for precision in ("fp32", "bf16"):
            yield f"speed: {name} {precision}", lambda m=model, d=data, p=precision: speed(m, d, device, p)
    for kind, name in (map(str, case.values) for case in contract.CASES):
        if (kind, name.partition("-")[0]) not in contract.REFUSED:
            for precision in ("fp32", "bf16"):
                yield f"contract: {kind} {name} {precision}", lambda k=kind, n=name, p=precision: keeps(k, n, p, device)


def net(name: str) -> tuple[torch.nn.Module, lab.Data]:
    text = name == "transformer"
    data = lab.load("sorting", train=600, test=200) if text else lab.load("digits", train=600, test=200, size=16)
    return contract.build(name, data, seed=0), data


def beside_cpu(model: torch.nn.Module, data: lab.Data, device: str) -> dict[str, float]:
    """The largest difference of a weight after ten steps in fp32, and both losses."""
    options: dict[str, Any] = {"epochs": 1, "batch_size": 60, "precision": "fp32", **PLAIN}
    there, here = (lab.fit(model, data, device=place, **options) for place in (device, "cpu"))
    pairs = zip(there.model.parameters(), here.model.parameters(), strict=True)
    apart = max(float((a.detach().cpu() - b.detach()).abs().max()) for a, b in pairs)
    losses = [run.history[-1]["loss"] for run in (there, here)]
    assert abs(losses[0] - losses[1]) < 0.02 * abs(losses[1]), losses
    return {"largest difference of a weight": apart, "loss": losses[0], "loss on the CPU": losses[1]}


def twice(model: torch.nn.Module, data: lab.Data, device: str) -> dict[str, bool]:
    """Whether the same seed gave the same bits: asked, not demanded, since the record says what may differ."""
    runs = [lab.fit(model, data, epochs=1, batch_size=60, device=device, **PLAIN) for _ in range(2)]
    one, other = (identity.tensor_hash(run.model.state_dict()) for run in runs)
    return {"same bits": one == other}


def waits(model: torch.nn.Module, data: lab.Data, device: str) -> dict[str, int]:
    """What CUDA itself reports as synchronising between the first and the last step of an epoch: there is nothing."""
    found: list[str] = []

    def watch(run: lab.Run) -> None:
        torch.cuda.set_sync_debug_mode("warn" if 1 <= run.step < run.steps_per_epoch - 1 else "default")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            lab.fit(model, data, epochs=1, batch_size=60, device=device, seed=1, progress=watch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = [str(w.message) for w in caught if "synchroniz" in str(w.message)]
    assert not found, found[:3]
    return {"waits": len(found)}


def scores(name: str, model: torch.nn.Module, data: lab.Data, device: str) -> dict[str, float]:
    """How many of the weights are chosen alike on both."""
    if name == "random" or name.startswith("norm"):
        return {}
    cut = methods.OneShot(0.5, name, scope="layer")
    runs = [lab.fit(model, data, cut, epochs=0, precision="fp32", device=d, **PLAIN) for d in (device, "cpu")]
    alike = [float((a.cpu() == b).float().mean()) for a, b in zip(*(run.masks.values() for run in runs), strict=True)]
    assert min(alike) > 0.98, alike
    return {"least share of a layer chosen alike": min(alike)}


def speed(model: torch.nn.Module, data: lab.Data, device: str, precision: Any) -> dict[str, float]:
    options: dict[str, Any] = {"batch_size": 100, "precision": precision, "device": device, **PLAIN}
    lab.fit(model, data, epochs=1, **options)
    run = lab.fit(model, data, epochs=10, **options)
    return {"steps a second": round(run.step / run.seconds, 1)}


def keeps(kind: str, name: str, precision: Any, device: str) -> dict[str, Any]:
    """One method: it ends, its target is kept or missed by name, and what is pruned is exactly 0."""
    model, data = net(kind)
    if "N2NSkip" in name:
        model = contract.skipping(model, data)
    made, options = contract.ELSEWHERE.get(kind, {}).get(name, (contract.METHODS[name], {}))
    options = {"precision": precision, "device": device, "collapse": "allow", **PLAIN, **options}
    run = lab.fit(model, data, *made, epochs=2, batch_size=150, **options)
    contract.target_is_exact_or_missed(run)
    return {"status": run.status, "val": run.val, "sparsity": run.sparsity}


if __name__ == "__main__":
    sys.exit(main())
