"""Measure each network that lies beside its record again, on this machine, and compare image by image."""

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ..data.dataset import Data
from ..data.loading import load
from ..errors import ConfigError, DataError
from ..models.building import build
from ..results.answers import Answers, unpack
from ..results.record import Result
from ..storage import sparse
from ..train.evaluate import evaluate
from ..typed import checked

NETWORK = ".sparse"
"""The end of the name of a network that lies beside its record."""


@checked
def verify(folder: str | Path) -> pd.DataFrame:
    """One row for each record in `folder` whose network lies beside it.

    `verdict` is "verified" if every test image has the recorded answer and the network has as many weights as the
    record says. Otherwise it is "differs". It is "no data" if the data set is not at hand, and "damaged" if a file
    cannot be read. `images` counts the test images whose answer differs; `measured` is the accuracy on this machine.
    """
    networks = sorted(Path(folder).rglob(f"*{NETWORK}"))
    if not networks:
        raise DataError(f"{folder} has no networks; expected files NAME{NETWORK} beside records NAME.json.")
    rows = [{"network": str(path.relative_to(folder)), **_verified(path)} for path in networks]
    return pd.DataFrame(rows, columns=pd.Index(["network", "verdict", "images", "recorded", "measured", "said"]))


def in_words(found: pd.DataFrame) -> Iterator[str]:
    """The table's rows and what they come to."""
    for row in found.to_dict("records"):
        yield f"{row['verdict']:<10}{row['network']}{': ' + row['said'] if row['said'] else ''}"
    counts = found["verdict"].value_counts()
    yield f"{len(found)} networks: {', '.join(f'{n} {verdict}' for verdict, n in counts.items())}."


def _verified(path: Path) -> dict[str, Any]:
    row = {"images": None, "recorded": np.nan, "measured": np.nan, "said": ""}
    try:
        record = Result.read(path.with_suffix(".json"))
        row |= {"recorded": record.test}
        if record.accuracy.get("answers") is None:
            raise DataError(f"{path.with_suffix('.json')} holds no answers to compare with.")
        expected = unpack(record.accuracy["answers"], record.config["data"]["test"])
    except DataError as error:
        return row | {"verdict": "damaged", "said": str(error)}
    try:
        data = _data(record)
    except (DataError, ConfigError) as error:
        return row | {"verdict": "no data", "said": str(error)}
    try:
        return row | _measured(path, record, data, expected)
    except DataError as error:
        return row | {"verdict": "damaged", "said": str(error)}


def recorded_network(path: str | Path) -> tuple[nn.Module, Data]:
    """The network of a sparse file, and its data, as the record beside it says."""
    record = Result.read(Path(path).with_suffix(".json"))
    data = _data(record)
    return _network(Path(path), record, data), data


def _network(path: Path, record: Result, data: Data) -> nn.Module:
    made = record.config["model"]
    model = build(made["name"], data, seed=made.get("seed", 0), widths=made.get("widths"), **made.get("options", {}))
    return sparse.load(path, model)


def _measured(path: Path, record: Result, data: Data, expected: np.ndarray) -> dict[str, Any]:
    model = _network(path, record, data)
    nonzero = sum(int((p != 0).sum()) for p in model.parameters())
    answers, narrow = Answers(), record.config["precision"] == "bf16"
    model.eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        batches = data.test.batches(record.config.get("eval_batch_size") or 1000)
        accuracy = evaluate(model, batches, cross_entropy, each_batch=answers.add)["accuracy"]
    images = int((unpack(answers.entry() or {}, len(expected)) != expected).sum())
    said = [f"{images} of {len(expected)} images have another answer"] if images else []
    if nonzero != record.size["nonzero"]:
        said.append(f"{nonzero:,} parameters are not zero, {record.size['nonzero']:,} in the record")
    verdict = "differs" if said else "verified"
    return {"verdict": verdict, "images": images, "measured": accuracy, "said": "; ".join(said)}


def _data(record: Result) -> Data:
    told = record.config["data"]
    data = _loaded(told["name"], told["seed"], told["val"] / (told["train"] + told["val"]))
    if data.fingerprint != told["fingerprint"]:
        raise DataError(f"{told['name']} has other images here than the record tells of.")
    return data


@lru_cache(maxsize=4)
def _loaded(name: str, seed: int, val: float) -> Data:
    sized = re.fullmatch(r"(.+)-(\d+)", name)
    return load(sized[1], size=int(sized[2]), seed=seed, val=val) if sized else load(name, seed=seed, val=val)
