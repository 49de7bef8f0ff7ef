"""The smallest files: a shipped network with few bits a weight, and its positions coded.

    PRUNINGLAB_DATA=… OMP_NUM_THREADS=1 python notebooks/results/bytes/study.py

The weights of each layer are put on k-means levels, with no training, for each width in `BITS`. The fewest bytes win
whose validation accuracy is at most `LOSS` below that of the network as it is. Then ADMM pulls the weights to so many
levels, and the levels are trained. Each network lies beside its record. What was broken off goes on from runs/.
"""

import argparse
from pathlib import Path
from typing import Literal

import torch

import pruninglab as lab
from pruninglab.storage import levels

HERE = Path(__file__).parent
SOURCE = HERE.parent / "papers" / "MNIST" / "seed-0" / "relevance.sparse"
BITS = (2, 3, 4, 5, 6, 7, 8)
LOSS = 0.0015
Precision = Literal["bf16", "fp32"]


def start(source: Path, data: lab.Data, seed: int, precision: Precision) -> lab.Run:
    """The network as a run without a step, under the masks that it has."""
    model = lab.storage.load(source, lab.build("lenet5", data, seed=seed))
    masks = {name: p.detach() != 0 for name, p in lab.prunable(model, biases=True).items()}
    return lab.fit(model, data, masks=masks, epochs=0, biases=True, seed=seed, precision=precision, progress=False)


def rounded(run: lab.Run, bits: int) -> lab.Run:
    """The network with each weight on the nearest of 2^bits levels of its layer."""
    model = run.model
    kept = {name: weight.detach().clone() for name, weight in lab.prunable(model).items()}
    with torch.no_grad():
        for name, weight in lab.prunable(model).items():
            mask = run.masks[name]
            weight.copy_(levels.project(weight, mask, levels.fit(weight[mask], bits, "clustered")))
    found = lab.fit(model, run.data, masks=run.masks, epochs=0, biases=True, seed=run.options.seed, progress=False)
    with torch.no_grad():
        for name, weight in lab.prunable(model).items():
            weight.copy_(kept[name])
    return found


def main(source: Path, seed: int, epochs: int, precision: Precision) -> None:
    data = lab.load("MNIST", seed=seed, val=1 / 12)
    whole = start(source, data, seed, precision)
    print(f"as it is: val {whole.val:.2%}, payload {whole.result.size['payload_bytes']:,} bytes")
    tried = {bits: rounded(whole, bits) for bits in BITS}
    for bits, run in tried.items():
        print(f"{bits} bits: val {run.val:.2%}, payload {run.result.size['payload_bytes']:,} bytes", flush=True)
    chosen = min(bits for bits, run in tried.items() if run.val >= whole.val - LOSS)
    each = {"epochs": epochs, "finetune": epochs, "folder": Path("runs/bytes", f"{source.stem}-{chosen}")}
    fit = {"seed": seed, "biases": True, "precision": precision, "progress": False}
    widths = {"conv": chosen, "dense": chosen}
    run = lab.recipes.quantize(whole, data, widths, **each, **fit).last
    run.result.tags |= {"method": "quantized", "bits": chosen, "chosen_by": "validation"}
    lab.storage.save(run, HERE / f"{source.stem}-{chosen}-bits.sparse")
    run.save(HERE / f"{source.stem}-{chosen}-bits.json")
    size = run.result.size
    print(f"{chosen} bits, trained: val {run.val:.2%}, test {run.test:.2%}, {size['nonzero']:,} parameters, "
          f"payload {size['payload_bytes']:,} bytes, whole file {size['sparse_bytes']:,} bytes")  # fmt: skip


if __name__ == "__main__":
    read = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    read.add_argument("--source", type=Path, default=SOURCE, help="the sparse file to begin with")
    read.add_argument("--seed", type=int, default=0, help="of the data's split; that of the network's own training")
    read.add_argument("--epochs", type=int, default=2, help="of ADMM, and as many of training the levels")
    read.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="fp32 where bf16 is emulated")
    main(**vars(read.parse_args()))
