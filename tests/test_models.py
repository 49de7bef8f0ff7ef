import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import pruninglab as lab
from pruninglab import _torchvision, models
from pruninglab.errors import ConfigError, DataError
from pruninglab.models import building
from pruninglab.models.fastnet import whitening


@dataclass(frozen=True)
class Images:
    shape: tuple[int, int, int]
    classes: int = 10


GREY, COLOUR, IMAGENET = Images((1, 28, 28)), Images((3, 32, 32)), Images((3, 224, 224), 1000)
SMALL: dict[str, dict[str, Any]] = {
    "alexnet": {"width": 0.1},
    "vgg16": {"width": 0.1},
    "resnet20": {},
    "resnet50": {"width": 0.1},
    "fastnet": {"width": 0.1},
    "n2nskip": {"width": 0.1},
}


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def same_bits(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(n == m and torch.equal(x, y) for (n, x), (m, y) in pairs)


# Counts


@pytest.mark.parametrize(
    ("name", "data", "options", "expected"),
    [
        ("lenet300", GREY, {}, 266_610),  # 235,500 + 30,100 + 1,010; published 266.6K
        ("lenet5", GREY, {}, 431_080),  # 520 + 25,050 + 400,500 + 5,010; published 431K
        # 2,251,584 convolutions + 1024 -> 4096: 4,198,400 + 16,781,312 + 40,970; published 23.3M
        ("alexnet", COLOUR, {}, 23_272_266),
        # 14,710,464 convolutions + 8,448 BatchNorm + 262,656 + 5,130; published 15.0M
        ("vgg16", COLOUR, {}, 14_986_698),
        ("resnet20", COLOUR, {}, 269_722),  # 267,696 convolutions + 1,376 BatchNorm + 650; published 0.27M
        ("resnet20", COLOUR, {"shortcut": "B"}, 272_474),  # and 16*32 + 32*64, 2 * (32 + 64)
        # 23,447,232 convolutions + 53,120 BatchNorm + 20,490; published 23.5M
        ("resnet50", COLOUR, {}, 23_520_842),
        ("resnet50", COLOUR, {"shortcut": "A"}, 20_744_266),
        # 866,304 convolutions + 4,608 whitening + 1,536 BatchNorm + 1,920
        ("fastnet", COLOUR, {}, 874_368),
        # and 1,920,384 in four convolutions, 2,816 in their BatchNorm
        ("n2nskip", COLOUR, {}, 16_909_898),
        ("n2nskip", COLOUR, {"share_bn": True}, 16_907_082),
        ("n2nskip", COLOUR, {"base": "resnet20"}, 269_722 + 96_768 + 2 * 320),
    ],
)
def test_parameter_counts(name: str, data: Images, options: dict[str, Any], expected: int):
    with torch.device("meta"):
        assert count(models.build(name, data, **options)) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("resnet50", 25_557_032), ("vgg16", 138_357_544), ("alexnet", 61_100_840), ("mobilenet_v2", 3_504_872)],
)
def test_torchvision_counts(name: str, expected: int):
    with torch.device("meta"):
        assert count(models.build(f"torchvision:{name}", IMAGENET)) == expected


def test_every_own_model_has_a_docstring_with_its_count():
    for name, make in models.MODELS.items():
        with torch.device("meta"):
            model = models.build(name, GREY if name.startswith("lenet") else COLOUR)
        assert f"{count(model):,}" in (make.__doc__ or "")


# Shapes


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 8, 8), (3, 40, 48)])
@pytest.mark.parametrize("name", models.available())
def test_forward_shapes(name: str, shape: tuple[int, int, int]):
    model = models.build(name, Images(shape, 7), **SMALL.get(name, {}))
    assert model(torch.rand(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("name", models.available())
def test_definition_order_is_computation_order(name: str):
    options: dict[str, Any] = SMALL.get(name, {}) | ({"shortcut": "B"} if "resnet" in name else {})
    model = models.build(name, COLOUR, **options)
    defined = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    called: list[str] = []
    for n, module in model.named_modules():
        if n in defined:
            module.register_forward_hook(lambda *_, n=n: called.append(n))
    model(torch.rand(2, 3, 32, 32))
    assert called == defined


@pytest.mark.parametrize("name", models.available())
def test_channels_last_is_the_same_function(name: str):
    model = models.build(name, COLOUR, **SMALL.get(name, {})).eval()
    x = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        found = model(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_pooling_before_the_relu_changes_nothing():
    model = models.build("lenet5", GREY)
    x = torch.rand(3, 1, 28, 28)
    expected = x
    for layers in (("conv1", "relu1", "pool1"), ("conv2", "relu2", "pool2"), ("flatten", "fc1", "relu3", "fc2")):
        for layer in layers:
            expected = model.get_submodule(layer)(expected)
    assert torch.equal(model(x), expected)


def test_shortcut_a_pads_with_zeros():
    shortcut = models.build("resnet20", COLOUR).get_submodule("block2_1.shortcut")
    x = torch.rand(1, 16, 8, 8)
    out = shortcut(x)
    assert out.shape == (1, 32, 4, 4)
    assert torch.equal(out[:, :16], x[:, :, ::2, ::2])
    assert not out[:, 16:].any()


def test_residual_convolutions_are_drawn_as_he_says():
    weight = models.build("resnet50", COLOUR).get_parameter("block4_2.conv2.weight")
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)


def test_dropout_is_off_unless_asked_for():
    x = torch.rand(4, 3, 32, 32)
    plain = models.build("alexnet", COLOUR, width=0.1)
    assert torch.equal(plain(x), plain(x))
    dropping = models.build("alexnet", COLOUR, width=0.1, dropout=0.5)
    assert not torch.equal(dropping(x), dropping(x))
    assert same_bits(plain, dropping)


@pytest.mark.parametrize(
    ("name", "data", "options", "message"),
    [
        ("lenet5", Images((28, 28)), {}, "expected .channels, height, width."),  # type: ignore[arg-type]
        ("lenet5", Images((1, 0, 28)), {}, "three whole numbers above 0"),
        ("lenet5", Images((1, 3, 28)), {}, "expected at least 4x4"),
        ("lenet5", Images((1, 28, 28), 0), {}, "classes is 0"),
        ("alexnet", COLOUR, {"dropout": 1.0}, "dropout=1.0"),
        ("vgg16", COLOUR, {"width": 0.0}, "width=0.0"),
        ("resnet20", COLOUR, {"shortcut": "C"}, "shortcut='C'; expected one of 'A'"),
    ],
)
def test_impossible_models_are_refused(name: str, data: Images, options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        models.build(name, data, **options)


# Names and options


def test_unknown_name_shows_the_nearest_and_the_list():
    with pytest.raises(ConfigError, match=r"no model 'LeNet_5'; did you mean 'lenet5'\? Expected one of lenet300"):
        models.build("LeNet_5", GREY)
    with pytest.raises(ConfigError, match=r"did you mean 'torchvision:resnet18'"):
        models.build("torchvision:resnet-18", COLOUR)
    with pytest.raises(ConfigError, match=r"no model 'zzz'\. Expected"):
        models.build("zzz", COLOUR)


def test_unknown_option_shows_the_valid_ones():
    with pytest.raises(ConfigError, match=r"alexnet has no option depth; it has width, dropout"):
        models.build("alexnet", COLOUR, depth=3)
    with pytest.raises(ConfigError, match=r"lenet5 has no option width; it has none"):
        models.build("lenet5", GREY, width=2)
    with pytest.raises(ConfigError, match=r"torchvision:resnet18 cannot be built .*unexpected keyword .*'depth'"):
        models.build("torchvision:resnet18", COLOUR, depth=3)


def test_a_function_is_a_model_too():
    def tiny(shape: tuple[int, int, int], classes: int, *, hidden: int = 4) -> nn.Module:
        size = shape[0] * shape[1] * shape[2]
        return nn.Sequential(nn.Flatten(), nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, classes))

    assert count(models.build(tiny, GREY, hidden=2)) == 784 * 2 + 2 + 2 * 10 + 10
    assert same_bits(models.build(tiny, GREY, seed=3), models.build(tiny, GREY, seed=3))
    with pytest.raises(ConfigError, match=r"tiny has no option depth; it has hidden"):
        models.build(tiny, GREY, depth=1)
    with pytest.raises(ConfigError, match=r"returned int; expected an nn.Module"):
        models.build(lambda shape, classes: 3, GREY)  # type: ignore[arg-type, return-value]


# Seeds


@pytest.mark.parametrize("name", [*models.available(), "torchvision:squeezenet1_1", "torchvision:mobilenet_v3_small"])
def test_the_seed_decides_the_bits_and_the_global_generator_is_untouched(name: str):
    options = SMALL.get(name, {})
    data = IMAGENET if "torchvision" in name else COLOUR
    before = torch.random.get_rng_state()
    first = models.build(name, data, seed=1, **options)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(3)
    assert same_bits(first, models.build(name, data, seed=1, **options))
    assert not same_bits(first, models.build(name, data, seed=2, **options))


# Weights from a file


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[object], Path]:
    def save(content: object) -> Path:
        torch.save(content, tmp_path / "net.pt")
        return tmp_path / "net.pt"

    return save


def test_weights_round_trip(saved: Callable[[object], Path], tmp_path: Path):
    source = models.build("resnet20", COLOUR, seed=5)
    state = source.state_dict()
    for content in (
        state,
        {"state_dict": state, "epoch": 3},
        {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
        {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()},
        {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")},
    ):
        assert same_bits(source, models.build("resnet20", COLOUR, weights=saved(content)))
    safetensors.torch.save_file(state, tmp_path / "net.safetensors")
    assert same_bits(source, models.build("resnet20", COLOUR, weights=tmp_path / "net.safetensors"))


def test_new_head_keeps_the_last_layer_as_drawn(saved: Callable[[object], Path]):
    path = saved(models.build("lenet5", GREY, seed=5).state_dict())
    more = Images((1, 28, 28), 26)
    with pytest.raises(ConfigError, match=r"fc2\.weight \(10, 500\) in the file, \(26, 500\) here.*new_head=True"):
        models.build("lenet5", more, weights=path)
    model = models.build("lenet5", more, seed=1, weights=path, new_head=True)
    loaded, drawn = models.build("lenet5", GREY, seed=5), models.build("lenet5", more, seed=1)
    assert torch.equal(model.get_parameter("fc1.weight"), loaded.get_parameter("fc1.weight"))
    assert torch.equal(model.get_parameter("fc2.weight"), drawn.get_parameter("fc2.weight"))
    path = saved(models.build("lenet5", COLOUR, seed=5).state_dict())
    with pytest.raises(ConfigError, match=r"conv1\.weight \(20, 3, 5, 5\) in the file, .* use the same image shape"):
        models.build("lenet5", more, weights=path, new_head=True)


def test_weights_of_another_model_are_refused(saved: Callable[[object], Path]):
    path = saved(models.build("lenet300", GREY).state_dict())
    with pytest.raises(ConfigError, match=r"lacks conv1\.weight.*the model has no fc3\.weight.*Build the model"):
        models.build("lenet5", GREY, weights=path)


def test_unreadable_weights_are_data_errors(saved: Callable[[object], Path], tmp_path: Path):
    with pytest.raises(DataError, match=r"there is no file .*nowhere.pt"):
        models.build("lenet300", GREY, weights=tmp_path / "nowhere.pt")
    for name in ("bad.pt", "bad.safetensors"):
        (tmp_path / name).write_bytes(b"not a checkpoint")
        with pytest.raises(DataError, match=rf"{name} cannot be read.*write it again"):
            models.build("lenet300", GREY, weights=tmp_path / name)
    with pytest.raises(DataError, match=r"holds more than tensors"):
        models.build("lenet300", GREY, weights=saved(models.build("lenet300", GREY)))
    with pytest.raises(DataError, match=r"holds no tensors by name"):
        models.build("lenet300", GREY, weights=saved([1, 2]))


# torchvision


@pytest.mark.parametrize(
    "family",
    [
        *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "maxvit_t"),
        *("mnasnet0_5", "mobilenet_v3_small", "resnet18", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_0"),
        *("swin_t", "vgg11_bn", "vit_b_32", "wide_resnet50_2"),
    ],
)
def test_torchvision_families(family: str):
    with torch.device("meta"):
        model = models.build(f"torchvision:{family}", Images((3, 224, 224), 7))
        assert model(torch.empty(2, 3, 224, 224)).shape == (2, 7)  # in training mode: one tensor, no auxiliary logits


def test_torchvision_models_on_small_images():
    model = models.build("torchvision:regnet_x_400mf", Images((3, 32, 32), 7))
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    assert model.training
    with torch.device("meta"):
        assert count(models.build("torchvision:vit_b_16", COLOUR)) == 85_658_890  # 5 positions, not 197
        with pytest.raises(ConfigError, match=r"torchvision:alexnet cannot take 32x32 images .*enlarge the images"):
            models.build("torchvision:alexnet", COLOUR)
        with pytest.raises(ConfigError, match=r"torchvision:vit_b_16 cannot be built for 28x28 images"):
            models.build("torchvision:vit_b_16", Images((3, 28, 28)))


def test_torchvision_models_want_colour():
    with pytest.raises(ConfigError, match=r"wants images of 3 channels and the data have 1; repeat the grey channel"):
        models.build("torchvision:resnet18", GREY)


@pytest.mark.slow
def test_torchvision_imports_after_the_package_and_raises_no_warning():
    """The package leaves to first use what is long to import."""
    late = "{'matplotlib', 'nbformat', 'scipy.stats', 'sklearn', 'torch._dynamo', 'torchvision'}"
    code = "import sys, torch, warnings; warnings.simplefilter('error'); import pruninglab; "
    code += f"pruninglab.load('digits', size=8); print({late} & sys.modules.keys()); import torchvision; "
    code += "from torchvision.transforms import v2; from torchvision import datasets, models; print(models.resnet18)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith("set()\n")
    assert "resnet18" in done.stdout


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import the repairing module afresh beside a torchvision with this source."""

    def fresh(source: str) -> ModuleType:
        (tmp_path / "torchvision").mkdir()
        (tmp_path / "torchvision" / "__init__.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            monkeypatch.delitem(sys.modules, name)
        return load_fresh()

    return fresh


def load_fresh() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pruninglab._fresh", _torchvision.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nothing_is_patched_where_the_operators_load(beside: Callable[[str], ModuleType]):
    for name in _torchvision._SCHEMAS:
        assert hasattr(torch.ops.torchvision, name)  # the package defined them, or they loaded
    module = beside("number = 7")
    assert module.torchvision.number == 7
    assert module._library is None


def test_missing_operators_are_defined(beside: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch):
    defined: list[str] = []
    monkeypatch.setattr(torch, "ops", SimpleNamespace(torchvision=SimpleNamespace(nms=None)))
    library = type("Library", (), {"__init__": lambda *_: None, "define": lambda _, schema: defined.append(schema)})
    monkeypatch.setattr(torch.library, "Library", library)
    module = beside("number = 7")
    assert defined == [_torchvision._SCHEMAS["qnms"]]
    assert module.torchvision.number == 7


def test_other_failures_of_torchvision_come_through(beside: Callable[[str], ModuleType]):
    module = beside("raise RuntimeError('the moon is full')")
    with pytest.raises(RuntimeError, match=r"^the moon is full$"):
        _ = module.torchvision


def test_a_module_missing_inside_torchvision_comes_through(beside: Callable[[str], ModuleType]):
    module = beside("import no_such_module")
    with pytest.raises(ModuleNotFoundError, match=r"no_such_module"):
        _ = module.torchvision


def test_other_warnings_of_torchvision_come_through(beside: Callable[[str], ModuleType]):
    module = beside(
        "import warnings\nwarnings.warn('Failed to load image Python extension: no file')\n"
        "warnings.warn('something else')"
    )
    with pytest.warns(UserWarning, match=r"something else"):
        _ = module.torchvision


def test_missing_torchvision_is_said_when_it_is_needed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    module = load_fresh()
    with pytest.raises(ConfigError, match=r"torchvision, which is not installed. Install"):
        _ = module.torchvision
    monkeypatch.setattr(building, "_torchvision", module)
    with pytest.raises(ConfigError, match=r"not installed"):
        models.build("torchvision:resnet18", COLOUR)
    assert count(models.build("lenet5", GREY)) == 431_080


def test_whitening_is_the_reference_by_hand():
    """Of patches with two independent parts of second moments 4 and 1, halved and kept by their roots."""
    x = torch.tensor([[[[2.0, 1.0]]], [[[2.0, -1.0]]], [[[-2.0, 1.0]]], [[[-2.0, -1.0]]]])  # (4, 1, 1, 2)
    square = torch.cat((x, torch.zeros_like(x)), 2)  # (4, 1, 2, 2): two pixels never vary
    rows = whitening(square, 2, 1, 1e-6).view(8, 4)
    assert torch.allclose(rows[:4], -rows[4:])
    first, second = rows[0].abs(), rows[1].abs()
    assert first.tolist() == pytest.approx([0.5, 0, 0, 0], abs=1e-4)
    assert second.tolist() == pytest.approx([0, 1, 0, 0], abs=1e-4)


def test_a_whitened_layer_gives_uncorrelated_outputs():
    data = lab.load("digits", train=200, test=50, size=12)
    model: Any = models.build("fastnet", data, width=0.1)
    before = model.whiten.weight.clone()
    models.whiten_(model, data, images=200, epsilon=0.01)
    assert not torch.equal(before, model.whiten.weight)
    x, _ = next(iter(data.train.batches(200)))
    out = nn.functional.conv2d(x, model.whiten.weight, stride=2)[:, :16].permute(0, 2, 3, 1).flatten(0, 2)
    moments = out.T @ out / len(out)
    assert torch.allclose(moments, torch.diag(moments.diag()), atol=1e-3)
    assert moments.diag()[0] == pytest.approx(1, abs=0.01)  # λ / (λ + ε) of the largest
    assert moments.diag().tolist() == sorted(moments.diag().tolist(), reverse=True)
    run: Any = lab.fit(model, data, lab.methods.OneShot(0.9), epochs=1, progress=False)
    assert torch.equal(run.model.whiten.weight, model.whiten.weight)  # frozen, and out of scope
    assert "whiten.weight" not in run.masks
    with pytest.raises(lab.ConfigError, match="no layer `whiten`"):
        models.whiten_(models.build("lenet300", data), data)
