"""The sparse engine against PyTorch: random chains and residual networks, batches of any size, and hostile machines."""

import ctypes
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import pruninglab as lab
from pruninglab import deploy
from pruninglab.deploy import build, engine
from pruninglab.deploy.graph import Layer
from pruninglab.deploy.lowering import lower

needs_compiler = pytest.mark.skipif(os.name == "nt", reason="the engine is built with cc")
pytestmark = needs_compiler
CLOSE = 1e-5
TIMES = ("engine_one", "engine_many", "torch_one", "torch_many")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No race against PyTorch: whoever wins on a busy machine, the engine is what is tested."""
    monkeypatch.setattr(engine.Engine, "_race", lambda self, x: self.times.update(dict.fromkeys(TIMES, 1.0)))
    monkeypatch.setattr(engine, "ROUNDS", 1)


def built_for(shape: tuple[int, ...]) -> Any:
    """What a model of images is built for."""
    return SimpleNamespace(shape=shape, classes=10)


def sparse(model: nn.Module, density: float, seed: int = 0) -> nn.Module:
    """Random weights as if trained, of which a share is left; norms with statistics of their own."""
    source = torch.Generator().manual_seed(seed)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.ndim > 1:
            kept = torch.rand(tensor.shape, generator=source) < density
            tensor.data.normal_(0, 1, generator=source).mul_(kept).div_(max(density * tensor[0].numel(), 1) ** 0.5)
        elif name.endswith("running_var") or (tensor.is_floating_point() and name.endswith("weight")):
            tensor.data.uniform_(0.5, 1.5, generator=source)
        elif tensor.is_floating_point():
            tensor.data.normal_(0, 0.3, generator=source)
    return model.eval()


def images(n: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(9))


@torch.no_grad()
def apart(compiled: deploy.Engine, model: nn.Module, x: Tensor) -> float:
    wanted, got = model(x), compiled(x)
    assert got.shape == wanted.shape
    return float((got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-6))


def check(
    model: nn.Module, shape: tuple[int, ...], sizes: tuple[int, ...] = (1, 2, 16, 19), whole: bool = False
) -> deploy.Engine:
    """Compiled, and the same logits for batches that fill lanes, that do not, and for one image.

    `whole` keeps the channels that could be removed, so that what is drawn is what is computed.
    """
    x = images(3, shape)
    compiled = deploy.Engine(model, x, None) if whole else deploy.compile(model, x)
    assert compiled.compiled
    for worth in (1, 99):  # side by side, and one by one
        for step in compiled.steps:
            if isinstance(step, engine.Segment):
                step.worth = worth
        for n in sizes:
            assert apart(compiled, model, images(n, shape)) < CLOSE, (n, worth)
    return compiled


class Block(nn.Module):
    """Two paths that are added, or laid side by side, as the test draws them."""

    def __init__(self, a: nn.Module, b: nn.Module, join: str):
        super().__init__()
        self.a, self.b, self.join = a, b, join

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        if self.join == "cat":
            return torch.cat([a, b], 1)
        a += b
        return F.relu(a) if self.join == "relu" else a


@st.composite
def networks(draw: Any) -> tuple[nn.Module, tuple[int, int, int]]:
    """Convolutions of any stride, padding, dilation and groups, norms, ReLU, pooling, sums and concatenations."""
    channels, height, width = draw(st.integers(1, 3)), draw(st.integers(5, 12)), draw(st.integers(5, 12))
    shape = (channels, height, width)
    layers: list[nn.Module] = []
    high, wide = height, width

    def conv(inputs: int, outputs: int, stride: int = 1, keeps: bool = False) -> list[nn.Module]:
        kernel = (draw(st.sampled_from([1, 3])), draw(st.sampled_from([1, 3]))) if keeps else draw(st.integers(1, 4))
        padding = tuple(k // 2 for k in kernel) if isinstance(kernel, tuple) else draw(st.integers(0, 2))
        groups = draw(st.sampled_from([g for g in (1, 2, 3) if inputs % g == outputs % g == 0]))
        made: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel, stride, padding, 1, groups, draw(st.booleans()))]
        if draw(st.booleans()):
            made.append(nn.BatchNorm2d(outputs))
        if draw(st.booleans()):
            made.append(nn.ReLU(inplace=draw(st.booleans())))
        return made

    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["conv", "sum", "relu", "cat", "pool", "mean", "norm"]))
        outputs = draw(st.sampled_from([2, 3, 4, 6]))
        if kind == "conv":
            layers += conv(channels, outputs, draw(st.integers(1, 3)))
            channels = outputs
        elif kind in ("sum", "relu", "cat"):
            a, b = (nn.Sequential(*conv(channels, outputs, keeps=True)) for _ in range(2))
            same = outputs == channels and draw(st.booleans())
            layers.append(Block(a, nn.Identity() if same else b, kind))
            channels = 2 * outputs if kind == "cat" else outputs
        elif kind == "norm":
            layers += [nn.BatchNorm2d(channels)]
        else:
            side = draw(st.integers(2, 3))
            more = {"stride": draw(st.integers(1, 3)), "padding": draw(st.integers(0, 1))}
            more["ceil_mode"] = draw(st.booleans())
            layers.append((nn.MaxPool2d if kind == "pool" else nn.AvgPool2d)(side, **more))
        try:
            sizes = nn.Sequential(*layers).eval()(torch.zeros(2, *shape)).shape
        except RuntimeError:  # the image has become too small for this layer
            sizes = ()
        if not sizes or min(sizes) == 0:
            layers = [nn.Conv2d(shape[0], outputs, 3, padding=1)]
            channels, sizes = outputs, (2, outputs, height, width)
        _, channels, high, wide = sizes
    if draw(st.booleans()):
        layers += [nn.AdaptiveAvgPool2d(1)]
        high = wide = 1
    layers += [nn.Flatten(), nn.Linear(channels * high * wide, 5)]
    if draw(st.booleans()):
        layers += [nn.BatchNorm1d(5), nn.ReLU()]
    return nn.Sequential(*layers), shape


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(networks(), st.sampled_from([0.0, 0.05, 0.3, 1.0]))
def test_random_networks_give_the_logits_of_pytorch(drawn, density):
    model, shape = drawn
    check(sparse(model, density), shape, (1, 5, 17), whole=True)


@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [
        ("lenet300", (1, 16, 16), {}),
        ("lenet5", (1, 28, 28), {}),
        ("alexnet", (3, 32, 32), {"width": 0.1}),
        ("vgg16", (3, 32, 32), {"width": 0.2}),
        ("resnet20", (3, 32, 32), {}),
        ("resnet20", (3, 32, 32), {"shortcut": "B"}),
        ("n2nskip", (3, 32, 32), {"base": "resnet20"}),
    ],
)
def test_models_run_in_c_alone(name, shape, options):
    model = sparse(lab.build(name, built_for(shape), **options), 0.2)
    compiled = check(model, shape, (1, 18))
    assert compiled.compiled
    assert "PyTorch computes" not in repr(compiled)


@pytest.mark.parametrize("side", [4, 10, 19])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Identity])
def test_pooling_inside_a_convolution_for_widths_that_fill_no_vector(side, activation):
    layers = [nn.Conv2d(1, 3, 3, padding=1), activation(), nn.MaxPool2d(2), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(3 * (side // 2) ** 2, 2))
    check(sparse(model, 0.7), (1, side, side), (1, 3))


def test_what_the_engine_does_not_know_runs_in_pytorch_and_is_named():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2)
            self.act, self.norm, self.end = nn.SiLU(), nn.GroupNorm(2, 4), nn.Linear(4 * 9, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.act(self.one(x)) * torch.sigmoid(x.mean((2, 3), keepdim=True).sum(1, keepdim=True))
            x = self.norm(F.relu(self.two(x)))
            x = x.mul_(2).view(x.size(0), -1)
            return self.end(x)

    compiled = check(sparse(Mixed(), 0.5), (2, 8, 8))
    by_torch = compiled.report.query("how == 'PyTorch'").layer.tolist()
    assert {"act", "norm", "sigmoid", "mul_"} <= set(by_torch)
    assert compiled.report.query("how != 'PyTorch'").layer.tolist()[:1] == ["one"]
    assert "act" in repr(compiled)


def test_what_works_in_place_changes_its_input_for_all_that_read_it_later():
    class Shortcut(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.relu = nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace=True)
            self.conv2, self.end = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4 * 36, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv1(x)
            y = self.conv2(self.relu(x))
            return self.end(torch.flatten(y + x, 1))

    check(sparse(Shortcut(), 0.5), (2, 6, 6))


def test_a_network_without_a_graph_is_left_to_pytorch():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.end = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.end(x if x.sum() > 0 else -x)

    model, x = sparse(Branch(), 1.0), images(3, (4,))
    with pytest.warns(UserWarning, match="PyTorch computes this network"):
        compiled = deploy.compile(model, x)
    assert not compiled.compiled
    assert torch.equal(compiled(x), model(x))
    assert compiled.report.why.iloc[-1]


def two_layers(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(shape[0], 30), nn.ReLU(), nn.Linear(30, classes))


def test_masks_are_applied_and_the_model_is_left_alone(blobs):
    run = lab.fit(
        lab.build(two_layers, blobs), blobs, lab.methods.OneShot(0.8), epochs=1, collapse="allow", progress=False
    )
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    x = images(20, (10,))
    assert apart(deploy.compile(run), run.model.eval(), x) < CLOSE
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.model.state_dict().items())
    model = lab.build(two_layers, blobs)
    masks = lab.prune(model, 0.7, collapse="allow")[1]
    compiled = deploy.compile(model, blobs, masks)
    masks.apply_(dict(lab.prunable(model)))
    assert apart(compiled, model, x) < CLOSE


def test_images_of_another_size_and_no_images_are_refused():
    compiled = deploy.compile(sparse(nn.Sequential(nn.Linear(4, 3)), 1.0), images(3, (4,)))
    with pytest.raises(lab.ConfigError, match="compiled for batches of"):
        compiled(images(3, (5,)))
    with pytest.raises(lab.ConfigError, match="threads=0"):
        deploy.compile(nn.Linear(4, 3), images(3, (4,)), threads=0)
    with pytest.raises(lab.ConfigError, match="expected the data set or a batch"):
        deploy.compile(nn.Linear(4, 3))


def test_several_threads_share_a_batch_and_several_callers_an_engine():
    model = sparse(lab.build("lenet5", built_for((1, 28, 28))), 0.1)
    compiled = deploy.compile(model, images(3, (1, 28, 28)), threads=3)
    x = images(100, (1, 28, 28))
    assert apart(compiled, model, x) < CLOSE
    alone = compiled(x)
    with ThreadPoolExecutor(4) as pool:
        for logits in pool.map(lambda n: compiled(x[:n]), [100, 99, 1, 50] * 5):
            assert (logits - alone[: len(logits)]).abs().max() < CLOSE * alone.abs().max()


def test_a_batch_in_another_layout_or_precision_is_read_right():
    model = sparse(lab.build("lenet5", built_for((2, 16, 16))), 0.3)
    compiled = deploy.compile(model, images(3, (2, 16, 16)))
    x = images(18, (2, 16, 16))
    for other in (x.to(memory_format=torch.channels_last), x.double(), x.transpose(2, 3).contiguous().transpose(2, 3)):
        for n in (1, 18):
            assert (compiled(other[:n]) - compiled(x[:n])).abs().max() < CLOSE


def test_the_report_names_every_layer_with_its_weights():
    model = sparse(lab.build("lenet5", built_for((1, 28, 28))), 0.1)
    compiled = deploy.compile(model, images(3, (1, 28, 28)))
    report = compiled.report.set_index("layer")
    assert report.index.tolist()[:4] == ["conv1", "conv2", "fc1", "fc2"]
    assert (report.ms[:4] > 0).all()
    assert set(report.how[:4]) <= {"sparse", "compacted", "dense"}
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", compiled._repr_html_())
    assert f"{int(report.weights['fc1']):,}" in cells
    assert [cell for cell in cells if re.fullmatch(r"nan|None|<NA>|\d+\.\d{5,}|\d+\.0", cell)] == []


@pytest.mark.parametrize("path", ["-mno-avx512f", "-mno-avx"])
def test_narrower_vectors_and_plain_sse_compute_the_same(monkeypatch, tmp_path, path):
    """The paths of processors without AVX-512, and without AVX."""
    monkeypatch.setenv("PRUNINGLAB_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, path))
    model = sparse(lab.build("resnet20", built_for((3, 16, 16)), width=0.5), 0.3)
    check(model, (3, 16, 16), (1, 9))


# Hostile machines ------------------------------------------------------------------------------------------------


def small() -> tuple[nn.Module, Tensor]:
    return sparse(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), 0.7), images(5, (6,))


@pytest.mark.parametrize("compiler", ["nobody-has-this-compiler", "false"])
def test_without_a_compiler_pytorch_computes_and_says_so(monkeypatch, tmp_path, compiler):
    monkeypatch.setenv("PRUNINGLAB_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", compiler)
    model, x = small()
    with pytest.warns(UserWarning, match="compiler|could not build"):
        compiled = deploy.compile(model, x)
    assert not compiled.compiled
    assert torch.equal(compiled(x), model(x))


def test_a_cache_that_cannot_be_written_is_passed_by(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("PRUNINGLAB_CACHE", str(tmp_path / "file"))
    model, x = small()
    compiled = deploy.compile(model, x)
    assert compiled.compiled
    assert apart(compiled, model, x) < CLOSE


def test_a_damaged_file_in_the_cache_is_built_again(monkeypatch, tmp_path):
    monkeypatch.setenv("PRUNINGLAB_CACHE", str(tmp_path))
    built = tmp_path / "engine" / build.file_name()
    built.parent.mkdir()
    built.write_bytes(b"not code")
    assert isinstance(build.library(), ctypes.CDLL)
    whole = built.read_bytes()
    assert len(whole) > 1000
    assert sorted(path.name for path in built.parent.iterdir()) == [built.name, f"{built.name}.sha256"]
    monkeypatch.setattr(build, "_build", lambda path: pytest.fail("it was built again"))
    build.library()
    harmed = built.with_name("harmed.so")  # not the one that this process runs
    harmed.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    build._checksum(built).replace(build._checksum(harmed))
    with pytest.raises(OSError, match="altered"):
        build._loaded(harmed)


@pytest.mark.slow
def test_two_processes_that_build_at_once_both_get_the_whole_file(tmp_path):
    code = "from pruninglab.deploy import build; print(build.library().width_of_vectors())"
    environment = os.environ | {"PRUNINGLAB_CACHE": str(tmp_path)}
    started = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    widths = [process.communicate()[0].strip() for process in started]
    assert widths[0] == widths[1] in ("4", "8", "16")
    assert len(list((tmp_path / "engine").iterdir())) == 2


def test_norms_sums_activations_and_pools_are_drawn_into_the_layer_before():
    model = lab.build("resnet20", built_for((3, 16, 16))).eval()
    layers = lower(model, images(7, (3, 16, 16))).layers
    assert sum(layer.added for layer in layers) == 9
    assert {layer.kind for layer in layers} == {"convolution", "linear", "mean", "concatenation"}
    lenet = lower(lab.build("lenet5", built_for((1, 28, 28))).eval(), images(7, (1, 28, 28)))
    assert [(layer.name, layer.pool, layer.relu) for layer in lenet.layers] == [
        ("conv1", 2, True), ("conv2", 2, True), ("fc1", 0, True), ("fc2", 0, False),
    ]  # fmt: skip
    assert all(isinstance(layer, Layer) for layer in lenet.items)
