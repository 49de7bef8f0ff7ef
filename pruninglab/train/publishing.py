"""A finished run as a folder for others: weights, model card and record."""

from pathlib import Path
from typing import Any

import safetensors.torch

from ..errors import RunError
from ..storage.files import check_writable, write_atomic, writing
from ..typed import checked
from .run import Run


@checked
def publish(run: Run, folder: str | Path) -> Path:
    """Write the network, a model card and the record into a folder.

    A network of Hugging Face is written by its own `save_pretrained`, and read by its `from_pretrained`. Any other one
    is `model.safetensors`, all tensors by name: `safetensors.torch.load_model(network, file)` reads it. Pruned weights
    are zeros in both. README.md is the card, with the numbers of the record alone, and record.json that record.

    >>> sorted(path.name for path in lab.train.publish(run, folder / 'mine').iterdir())
    ['README.md', 'model.safetensors', 'record.json']
    """
    if not hasattr(run, "result"):
        raise RunError("a run is published when it is over; this one still trains. Call publish after fit.")
    folder = Path(folder)
    check_writable(folder / "README.md", "folder")
    model: Any = run.model
    with writing(folder):
        if hasattr(model, "save_pretrained"):
            model.save_pretrained(str(folder))
        else:
            safetensors.torch.save_model(model, str(folder / "model.safetensors"))
    write_atomic(folder / "README.md", card(run).encode())
    run.save(folder / "record.json")
    return folder


def card(run: Run) -> str:
    """What a reader has to know, in Markdown with the front matter that the Hugging Face Hub reads."""
    result, config = run.result, run.result.config
    numbers = "\n".join(f"| {name} | {_cell(text)} |" for name, text in result.summary())
    layers = "\n".join(f"| {_cell(x['layer'])} | {x['kept']:,} | {x['total']:,} |" for x in result.layers)
    return f"""---
tags: [pruning, sparsity]
---

# {config["model"]["name"]}, trained on {config["data"]["name"]}

{result.method}, seed {config["seed"]}. {result.in_scope:.1%} of all parameters were in scope.
This is one run: it has no spread.

| | |
|---|---|
{numbers}

| layer | weights kept | of |
|---|---|---|
{layers}

Made with pruninglab {result.environment["pruninglab"]} and torch {result.environment["torch"]}.
Fingerprint of the data: {config["data"]["fingerprint"]}. Hash of the weights: {result.accuracy["weights"]}.
"""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
