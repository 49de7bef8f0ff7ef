"""How much memory a training takes, beside what it cannot do without."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.history import measured

WORK = """
import json, re, sys
import torch
import pruninglab as lab

torch.set_num_threads(1)
batch, images = map(int, sys.argv[1:])
data = lab.load("strokes", train=2 * images, test=images, size=32, val=0.5)
options = {"batch_size": batch, "progress": False}
small = lab.build("vgg16", data, width=0.05)
lab.fit(small, data, lab.methods.OneShot(0.9), epochs=1, **options)  # what is loaded once
def status(name):
    return 1024 * int(re.search(rf"{name}:\\s+(\\d+) kB", open("/proc/self/status").read())[1])

before = status("VmRSS")
model = lab.build("vgg16", data)

held = {}
def hold(tensor):
    if tensor.untyped_storage().data_ptr() not in owned:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
    return tensor
owned = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
x = next(iter(data.train.batches([torch.arange(batch)])))[0]
with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
    model.train()(x)
activations = sum(storage.nbytes() for storage in held.values())
held.clear()

def peak():
    return status("VmHWM") - before

trained = 0
def watch(run):
    global trained
    if run.step < run.steps:
        trained = peak()

run = lab.fit(model, data, lab.methods.OneShot(0.9), inplace=True, epochs=3, **options | {"progress": watch})
weights = sum(p.nbytes for p in run.model.parameters())
optimizer = sum(t.nbytes for state in run.optimizer.state.values() for t in state.values())
parts = 2 * weights + optimizer + sum(mask.nbytes for mask in run.masks.values()) + activations
print(json.dumps({"training": trained / parts, "end": peak() / parts, "parts": parts, "activations": activations}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs the peak that Linux counts")
def test_the_end_of_a_training_takes_no_more_memory_than_its_steps() -> None:
    """VGG16 in small batches, beside its parts: weights, gradients, Adam's state, masks, and what a batch leaves.

    Beyond them are the best state so far (1.25 times the weights), masks in the type of the weights (1.0), and what
    the allocator keeps.
    """
    done = subprocess.run([sys.executable, "-c", WORK, "10", "20"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(f"\nvgg16, batch 10: peak {found['training']:.2f} times its parts in training, {found['end']:.2f} at the end")
    measured("peak memory of vgg16 in training / its parts", found["training"])
    measured("peak memory of vgg16 at the end / its parts", found["end"])
    assert found["end"] <= 1.02 * found["training"]
    assert found["end"] <= 2
