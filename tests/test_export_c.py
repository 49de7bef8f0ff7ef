"""The C file: the classes of PyTorch from the surviving weights alone, whatever the network, in strict C99."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_deploy import built_for, images, needs_compiler, networks, sparse
from torch import Tensor, nn

import pruninglab as lab
from pruninglab import deploy
from pruninglab.deploy import build
from pruninglab.deploy.lowering import lower
from pruninglab.deploy.memory import lay_out
from pruninglab.storage import levels

pytestmark = needs_compiler
STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic", "-std=c99")
SHIPPED = Path(__file__).parent.parent / "notebooks" / "results" / "papers" / "MNIST" / "seed-0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("c")


@pytest.fixture(autouse=True, scope="module")
def strict() -> Iterator[None]:
    """Every file that is loaded is built as the strictest user would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "PORTABLE", (*STRICT, "-O1", "-shared", "-fPIC"))
        yield


def compiled(path: Path, *options: str) -> Path:
    out = path.with_suffix(".out")
    command = [build.compiler(), *STRICT, *options, str(path), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.stderr
    assert done.returncode == 0
    return out


@torch.no_grad()
def apart(model: nn.Module, got: Any, x: Tensor) -> float:
    wanted = model(x)
    return float((got(x) - wanted).abs().max() / wanted.abs().max().clamp_min(1e-6))


number = iter(range(10**6))


@settings(max_examples=6, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(networks(), st.sampled_from([0.0, 0.05, 0.3, 1.0]))
def test_random_networks_give_the_logits_of_pytorch(folder, drawn, density):
    model, shape = drawn
    model, x = sparse(model, density), images(3, shape)
    made = deploy.export_c(model, folder / f"drawn{next(number)}.c", x)
    got = made.loaded()
    for _ in range(2):  # nothing is left over in the memory
        assert apart(model, got, x) < 1e-5


@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [
        ("lenet5", (1, 28, 28), {}),
        ("vgg16", (3, 32, 32), {"width": 0.1}),
        ("resnet20", (3, 16, 16), {"width": 0.5}),
        ("resnet20", (3, 16, 16), {"width": 0.5, "shortcut": "B"}),
    ],
)
def test_models_are_written_in_c(folder, name, shape, options):
    model = sparse(lab.build(name, built_for(shape), **options), 0.1)
    made = deploy.export_c(model, folder / f"{name}{next(number)}.c", images(3, shape))
    assert apart(model, made.loaded(), images(3, shape)) < 1e-5


@torch.no_grad()
def with_books(model: nn.Module, bits: int) -> nn.Module:
    """Every weight one of few values of its layer."""
    for weight in dict(lab.prunable(model)).values():
        kept = weight != 0
        weight.copy_(levels.project(weight, kept, levels.fit(weight[kept], bits, "linear")))
    return model


@pytest.mark.parametrize("bits", [2, 8])
def test_weights_trained_to_few_values_are_exact_in_few_bits(folder, bits):
    """Also behind batch norms, whose scales are kept apart."""
    model = with_books(sparse(lab.build("resnet20", built_for((3, 8, 8)), width=0.25), 0.3), bits)
    x = images(3, (3, 8, 8))
    full = deploy.export_c(model, folder / f"full{bits}.c", x)
    made = deploy.export_c(model, folder / f"few{bits}.c", x, bits=bits)
    assert made.weights == full.weights
    assert made.weight_bytes < full.weight_bytes
    assert apart(model, made.loaded(), x) < 1e-5


def test_sizes_are_those_of_the_object_file(folder):
    model = sparse(lab.build("lenet5", built_for((1, 28, 28))), 0.005)
    made = deploy.export_c(model, folder / "lenet.c", images(3, (1, 28, 28)), bits=4)
    text = made.path.read_text()
    arrays = re.findall(r"static const (float|unsigned char) \w+\[\] = \{([^}]*)\}", text)
    counted = sum(len(values.split(",")) * (4 if kind == "float" else 1) for kind, values in arrays)
    (floats,) = re.findall(r"static float memory\[(\d+)\]", text)
    assert (made.weight_bytes, made.ram_bytes, made.source_bytes) == (counted, 4 * int(floats), len(text))
    assert made.weight_bytes < 4096
    assert "#include" not in text.split("#ifdef DRIVER")[0]
    assert not re.search(r"\b(malloc|calloc|free)\b", text)
    assert "weights in" in repr(made)


def test_values_that_are_needed_together_lie_apart():
    network = lower(sparse(lab.build("resnet20", built_for((3, 16, 16)), width=0.5), 0.3), images(7, (3, 16, 16)))
    places, floats = lay_out(network)
    sizes = {name: int(np.prod(network.shapes[name])) for name in network.shapes}
    last = {name: n for n, layer in enumerate(network.layers) for name in layer.inputs}
    made = {layer.output: n for n, layer in enumerate(network.layers)}
    held = [name for name in made if isinstance(places[name], int)]
    for a in held:
        for b in held:
            if a < b and made[a] <= last[b] and made[b] <= last[a]:
                low, high = sorted((a, b), key=lambda name: places[name])
                assert int(places[low]) + sizes[low] <= int(places[high])
    largest = max(sum(sizes[n] for n in held if made[n] <= step <= last[n]) for step in range(len(network.layers)))
    assert largest <= floats <= 1.5 * largest


def test_what_c_does_not_have_is_refused_by_name(folder):
    x = images(2, (3, 8, 8))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(144, 2))
    with pytest.raises(lab.ConfigError, match="1 cannot be written in C"):
        deploy.export_c(model, folder / "refused.c", x)
    with pytest.raises(lab.ConfigError, match="no layer"):
        deploy.export_c(nn.Flatten(), folder / "refused.c", x)
    with pytest.raises(lab.ConfigError, match="bits=9"):
        deploy.export_c(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), folder / "refused.c", x, bits=9)
    assert not (folder / "refused.c").exists()


def test_the_driver_prints_a_class_for_each_image_of_a_file(folder):
    model = sparse(lab.build("lenet5", built_for((1, 28, 28))), 0.01)
    x = images(20, (1, 28, 28))
    made = deploy.export_c(model, folder / "2 digits.c", x)
    program = compiled(made.path, "-O3", "-DDRIVER")
    x.numpy().tofile(folder / "images.f32")
    said = subprocess.run([program, folder / "images.f32"], capture_output=True, text=True, check=True).stdout
    with torch.no_grad():
        assert [int(line) for line in said.split()] == model(x).argmax(1).tolist()
    assert subprocess.run([program, folder / "nothing"], capture_output=True, check=False).returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["progressive-167", "relevance"])
def test_all_test_images_of_mnist_have_the_classes_of_pytorch(folder, name):
    try:
        data = lab.load("MNIST")
    except lab.DataError:
        pytest.skip("the files of MNIST are not at hand")
    model = lab.storage.load(SHIPPED / f"{name}.sparse", lab.build("lenet5", data)).eval()
    made = deploy.export_c(model, folder / f"{name}.c", data)
    assert made.source_bytes < 64 * 1024
    assert deploy.export_c(model, folder / "few.c", data, bits=4).weight_bytes < 4096
    x = torch.cat([x for x, _ in data.test.batches(1000)])
    x.contiguous().numpy().tofile(folder / "images.f32")
    program = compiled(made.path, "-O3", "-DDRIVER")
    said = subprocess.run([program, folder / "images.f32"], capture_output=True, text=True, check=True).stdout
    with torch.no_grad():
        assert [int(line) for line in said.split()] == model(x).argmax(1).tolist()
