"""ONNX files and exported programs: the logits of the pruned network in other runtimes, for batches of any size."""

import sys
from typing import Any

import pytest
import torch
from test_deploy import built_for, images, sparse
from torch import Tensor, nn

import pruninglab as lab
from pruninglab import deploy
from pruninglab.deploy import programs

SHAPE = (1, 12, 12)


def thin() -> tuple[nn.Module, Tensor]:
    """A network with two dead channels."""
    model: Any = nn.Sequential(
        *(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 4)),
    )
    sparse(model, 0.5)
    for part in (model[0].weight, model[0].bias, model[1].weight, model[1].bias):
        part.data[:2] = 0
    return model, images(3, SHAPE)


@torch.no_grad()
def test_onnx_gives_the_same_logits_without_the_dead_channels(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    model, x = thin()
    path = deploy.export_onnx(model, tmp_path / "net.onnx", x)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for n in (1, 3, 11):
        batch = images(n, SHAPE)
        (got,) = session.run(None, {"images": batch.numpy()})
        assert torch.allclose(torch.from_numpy(got), model(batch), atol=1e-5)
    sizes = [tuple(tensor.dims) for tensor in onnx.load(path).graph.initializer]
    assert (4, 1, 3, 3) in sizes
    assert (6, 1, 3, 3) not in sizes


@torch.no_grad()
def test_an_exported_program_gives_the_same_logits_in_any_batch(tmp_path):
    model, x = thin()
    torch.export.save(deploy.export_program(model, x), tmp_path / "net.pt2")
    program = torch.export.load(tmp_path / "net.pt2").module()
    for n in (1, 5):
        assert torch.allclose(program(images(n, SHAPE)), model(images(n, SHAPE)), atol=1e-5)


def test_logits_that_differ_leave_no_file(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    model, x = thin()
    monkeypatch.setattr(programs, "TOLERANCE", -1.0)
    with pytest.raises(lab.RunError, match="onnxruntime gives logits that differ"):
        deploy.export_onnx(model, tmp_path / "net.onnx", x)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_refused_in_words(tmp_path, monkeypatch):
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.end = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.end(x if x.sum() > 0 else -x)

    with pytest.raises(lab.ConfigError, match=r"torch\.export cannot follow"):
        deploy.export_program(sparse(Branch(), 1.0), images(3, (4,)))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(lab.ConfigError, match="needs onnxruntime"):
        deploy.export_onnx(thin()[0], tmp_path / "net.onnx", thin()[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lenet5", "vgg16", "resnet20"])
def test_models_are_exported(tmp_path, name):
    pytest.importorskip("onnxruntime")
    shape = (1, 28, 28) if name == "lenet5" else (3, 32, 32)
    model = sparse(lab.build(name, built_for(shape)), 0.1)
    assert deploy.export_onnx(model, tmp_path / "net.onnx", images(3, shape)).exists()
