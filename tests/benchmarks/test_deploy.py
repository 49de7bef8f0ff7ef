"""What sparsity buys on this processor: one image, one thread, each side in turn inside one process.

lenet5 is the shipped network that was trained on MNIST, as dead channels are part of its speed. The others have random
weights and random masks of that density.
"""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks.history import measured
from benchmarks.lockstep import lockstep

import pruninglab as lab
from pruninglab import deploy

SHIPPED = Path(__file__).parents[2] / "notebooks/results/papers/MNIST/seed-0/relevance.sparse"
CASES = {  # network, side, sparsity: times faster than dense PyTorch, than onnxruntime with the dense network
    # 30 times where dense PyTorch takes 0.8 ms, with AVX2; with AVX-512 it takes 0.2 to 0.3 ms
    "lenet5 at 99.5 %": ("lenet5", (1, 28, 28), 0.995, 15.0, 6.0),
    "vgg16 at 95 %": ("vgg16", (3, 32, 32), 0.95, 6.0, None),
    "vgg16 at 99 %": ("vgg16", (3, 32, 32), 0.99, 25.0, None),
    "resnet20 at 90 %": ("resnet20", (3, 32, 32), 0.9, 1.0, None),
}


@pytest.mark.parametrize("case", CASES)
def test_a_sparse_network_is_faster_than_the_dense_one(case, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    name, shape, sparsity, wanted, wanted_onnx = CASES[case]
    torch.set_num_threads(1)
    images: Any = SimpleNamespace(shape=shape, classes=10)
    model = lab.build(name, images, seed=0).eval()
    x = torch.randn(16, *shape, generator=torch.Generator().manual_seed(0))
    one = x[:1].contiguous()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    path = deploy.export_onnx(model, tmp_path / "dense.onnx", x)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    pruned, masks = lab.prune(model, sparsity, "random", scope="layer")
    if name == "lenet5":
        pruned, masks = lab.storage.load(SHIPPED, copy.deepcopy(model)), None
    engine = deploy.compile(pruned, x, masks, threads=1)
    again = range(10 if name == "lenet5" else 1)  # images in a row, as they come to a device
    sides = {
        "engine": lambda: [engine(one) for _ in again],
        "dense PyTorch": lambda: [model(one) for _ in again],
        "dense onnxruntime": lambda: [session.run(None, {"images": one.numpy()}) for _ in again],
    }
    with torch.no_grad():
        found = lockstep(sides, rounds=100, least=True)
    print(f"\n{case}: engine faster than " + ", ".join(f"{s} {found[s]:.1f} x" for s in list(sides)[1:]))
    print(engine.report.round(4).to_string())
    for side in list(sides)[1:]:
        measured(f"{case}: engine / {side}", 1 / found[side])
    assert found["dense PyTorch"] >= wanted
    assert wanted_onnx is None or found["dense onnxruntime"] >= wanted_onnx
