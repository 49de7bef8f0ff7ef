"""Speed as ratios, both sides measured side by side in one process: absolute times belong to one machine.

`make bench` prints them. Rounds alternate between the sides, and the median of the round ratios is taken, so that a
machine that slows down in between slows both.
"""

import statistics
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from benchmarks.history import measured
from benchmarks.lockstep import lockstep, steps
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import pruninglab as lab
from pruninglab._torchvision import torchvision
from pruninglab.criteria.quadratic import LargeQuadratic, Quadratic, dampened
from pruninglab.data import Split
from pruninglab.methods.penalties.plain import add_terms, shrink
from pruninglab.methods.projection import admm
from pruninglab.methods.regrowth.sparse_momentum import moving_average
from pruninglab.train import checkpoints, machine
from pruninglab.train.fit import _train
from pruninglab.widgets.job import Job

IMAGES, BATCH = 2000, 100


@pytest.fixture(scope="module")
def data() -> lab.Data:
    return lab.load("strokes", train=2200, test=100, val=0.0909)


def plain_lenet() -> nn.Module:
    """The same net as most tutorials write it."""
    return nn.Sequential(
        *(nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10)),
    )


def per_sample(data: lab.Data) -> Dataset:
    """torchvision's own MNIST class over these images: one PIL image and its transforms at a time."""
    assert isinstance(data.train, Split)
    transforms, datasets = torchvision.transforms, torchvision.datasets
    dataset = object.__new__(datasets.MNIST)  # its constructor would look for files
    dataset.data, dataset.targets, dataset.target_transform = data.train.x[:, 0], data.train.y, None
    dataset.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1,), (0.3,))])
    return dataset


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ratio(slow: Callable[[], object], fast: Callable[[], object], rounds: int = 7) -> float:
    """Time of `slow` over time of `fast`."""
    slow()
    fast()
    return statistics.median(seconds(slow) / seconds(fast) for _ in range(rounds))


def test_training_with_masks_is_twice_as_fast_as_the_plain_idiom(data):
    dataset = per_sample(data)
    net = plain_lenet()
    optimizer = torch.optim.Adam(net.parameters())

    def plain() -> None:
        net.train()
        for x, y in DataLoader(dataset, BATCH, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()

    model, masks = lab.prune(lab.build("lenet5", data), 0.9)
    run = lab.fit(model, data, masks=masks, epochs=1, progress=False)
    assert run.masks.sparsity == pytest.approx(0.9, abs=1e-4)

    def ours() -> None:
        epoch(run)

    found = ratio(plain, ours)
    print(f"\nplain idiom / pruninglab with masks, lenet5, batch {BATCH}: {found:.2f} x")
    measured("step of lenet5 with masks / DataLoader loop", 1 / found)
    assert found >= 2


def test_masks_cost_at_most_five_percent_of_a_step(data):
    dense = lab.fit(lab.build("lenet5", data), data, epochs=1, progress=False)
    masked = lab.fit(dense, data, lab.methods.OneShot(0.9), epochs=1, progress=False)
    found = ratio(lambda: epoch(masked), lambda: epoch(dense), rounds=15)
    print(f"\nstep with masks / step without, lenet5, batch {BATCH}: {found:.3f}")
    measured("step of lenet5 with masks / without", found)
    assert found <= 1.05


def epoch(run: lab.train.Training) -> None:
    """One more epoch of a run, through the trainer's own loop, without the evaluation at its end."""
    run.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    run.find_weights()
    machine.make_optimizer(run)
    run.epoch = run.step = 0
    run.epochs, run.status = 1, "running"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[_train.__module__], "_end_of_epoch", lambda run, loss, bar: setattr(run, "epoch", 1))
        _train(run, 0.0, 0, None, 10**9, False)


@pytest.mark.parametrize("mode", ["ema", "window_mean", "window_max", "consecutive_below"])
def test_weightmom_keeps_its_books_in_two_percent_of_an_epoch(data, mode):
    """What it does after an epoch, cut included, against training on as many images as MNIST has.

    It goes by the weights, not by the images: against an epoch of few images it is more, and that is printed too.
    """
    model = lab.build("lenet5", data)
    run, watched = (lab.fit(model, data, epochs=1, progress=False) for _ in range(2))
    method = lab.methods.WeightMom(lab.Cubic(0.95), mode, begin=0.0, end=1.0)
    watched.epochs, watched.epoch = 60, 0
    method.on_start(watched)

    def books() -> None:
        for _ in range(8):
            watched.epoch += 1
            method.on_epoch(watched)

    with torch.no_grad():
        books()
        training = [(seconds(books) / 8, seconds(lambda: torch.enable_grad()(epoch)(run))) for _ in range(6)]
    found = statistics.median(book / trained for book, trained in training)
    of_mnist = found * IMAGES / 55_000
    print(f"\nWeightMom's books / epoch, lenet5, {mode}: {of_mnist:.4f} of 55,000 images, {found:.4f} of {IMAGES:,}")
    measured(f"epoch of lenet5 with books of {mode} / without", 1 + of_mnist)
    assert of_mnist <= 0.02


def test_a_network_without_seventy_percent_of_its_channels_is_three_times_faster(data):
    """Of VGG16 on 64 colour images of 32x32; with masks alone it is not faster at all, and that is printed too."""
    x = torch.randn(64, 3, 32, 32)
    model = lab.models.vgg16((3, 32, 32), 10).eval()
    masked, masks = lab.structured.prune(model, x[:2], 0.7, scope="layer")
    small = lab.structured.shrink(masked, x[:2], masks).model
    with torch.inference_mode():
        found, by_masks = (ratio(lambda: model(x), lambda net=net: net(x)) for net in (small, masked.eval()))
    print(f"\nVGG16, batch 64, dense / removed 70 % of its channels: {found:.2f} x; dense / masked: {by_masks:.2f} x")
    measured("vgg16 without 70 % of its channels / dense", 1 / found)
    assert found >= 3


SIZES = {"lenet5": [(20, 1, 5, 5), (50, 20, 5, 5), (500, 800), (10, 500)], "200 small": [(16, 16)] * 200}


@pytest.mark.parametrize("name", SIZES)
def test_one_call_for_all_layers_beside_a_loop_over_them(name):
    """What the methods do in every step, which is why they say `torch._foreach_` where a loop would be plainer."""
    w, z, u, g = ([1e-6 * torch.randn(size) for size in SIZES[name]] for _ in range(4))
    for weight, gradient in zip(w, g, strict=True):
        weight.grad = gradient
    rho = [1e-3] * len(w)

    def loop(each: Callable[..., object]) -> Callable[[], object]:
        return lambda: [each(*tensors) for tensors in zip(w, z, u, g, strict=True)]

    sides: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "ADMM's pull": (loop(lambda w, z, u, g: (w - z).add_(u).mul_(1e-3)), lambda: admm.pull(w, z, u, rho)),
        "a term of the gradient": (loop(lambda w, z, u, g: g.add_(u, alpha=1e-3)), lambda: add_terms(w, u, 1e-3)),
        "shares of the weights": (
            loop(lambda w, z, u, g: w.addcmul_(w, z.nan_to_num_(0.0), value=-1.0)),
            lambda: shrink(w, z),
        ),
        "a moving average": (loop(lambda w, z, u, g: u.lerp_(g, 0.1)), lambda: moving_average(u, g, 0.9)),
    }
    for what, (plain, ours) in sides.items():
        measured(f"{what} of {name}, one call / loop", 1 / ratio(plain, ours, rounds=101))


@dataclass
class TwoPasses(lab.Method):
    """Relevance as its authors compute it: a backward pass for C, and a second one through the loss with the term."""

    def on_loss(self, run):
        loss = run.options.loss(run.logits, run.y)
        weights = list(run.model.parameters())
        gradients = torch.autograd.grad(loss, weights, retain_graph=True)
        return 1e-3 * torch.stack([(w**2 / (1 + g.abs())).sum() for w, g in zip(weights, gradients, strict=True)]).sum()


def test_relevance_costs_at_most_five_percent_of_a_step(data):
    def trained(*made: lab.Method) -> lab.train.Training:
        return lab.fit(lab.build("lenet5", data), data, *made, epochs=1, progress=False)

    relevance = lab.methods.RelevanceL2
    plain, closed, double = trained(), trained(relevance()), trained(TwoPasses())
    exact = trained(relevance(second_order="exact"))
    found = ratio(lambda: epoch(closed), lambda: epoch(plain), rounds=15)
    twice, whole = (ratio(lambda run=run: epoch(run), lambda: epoch(plain)) for run in (double, exact))
    said = f"by double backward {twice:.2f}, with the derivative of C {whole:.2f}"
    print(f"\nstep with relevance / plain step, lenet5, batch {BATCH}: {found:.3f}; {said}")
    measured("step of lenet5 with relevance / without", found)
    assert found <= 1.05


def test_a_slider_of_pruning_by_hand_answers_in_time_for_a_hand(data):
    """Milliseconds are a machine's own: as a ratio, an answer costs less than four looks at the same images."""
    run = lab.fit(lab.build("lenet5", data, seed=0), data, epochs=1, progress=False)
    hand = lab.widgets.PruneByHand(run, images=200)
    shares = iter([0.02 + 0.001 * i for i in range(1000)])

    def move() -> None:
        hand.keep(next(shares))

    each = [seconds(move) for _ in range(20)]
    looks = ratio(move, lambda: run.evaluate(hand._images))
    print(f"a slider answers in {1000 * statistics.median(each):.0f} ms, {looks:.1f} looks at its 200 images")
    measured("a slider's answer / a look at its images", looks)
    assert looks < 4


def test_watching_a_training_costs_less_than_3_percent(data):
    """The share of the panel's own work, words and points, in the time of the thread that trains."""
    job, spent = Job(lab.widgets.Choice(method="Dense")), 0.0
    job.chart = lab.widgets.Chart()
    job.prepare()

    def watch(run: lab.Run) -> None:
        nonlocal spent
        spent += seconds(lambda: job.watch(run))

    run = lab.fit(lab.build("lenet5", data, seed=0), data, epochs=30, progress=watch)
    cost = spent / (run.seconds - spent)
    print(f"watching costs {cost:.1%} of {run.seconds:.1f} s")
    measured("training watched / unwatched", 1 + cost)
    assert job.chart.rows
    assert cost < 0.03


def test_a_checkpoint_costs_less_than_two_percent_of_an_epoch(data, tmp_path):
    """Of one of MNIST's, 540 steps; a checkpoint and a step take turns."""
    model = lab.build("lenet5", data, seed=0)
    run, step = lab.fit(model, data, epochs=1, progress=False), steps(model, data)
    sides = {"step": step, "checkpoint": lambda: checkpoints.save(run, tmp_path / "c", 0.0, 1, 0.0)}
    share = lockstep(sides)["checkpoint"] / 540
    print(f"a checkpoint of LeNet-5 with Adam takes {share:.2%} of an epoch")
    measured("epoch of lenet5 with a checkpoint / without", 1 + share)
    assert share < 0.02


def test_rows_of_a_large_layer_are_solved_for_together():
    """The least squares of 64 rows with 768 inputs: a factor for each row, against all rows at once."""
    x = torch.randn(3000, 768).relu().double()
    weights, moment = torch.randn(1, 64, 768).double(), (x.T @ x / len(x))[None]
    kept = torch.rand(weights.shape) < 0.4
    each, together = (kind(weights, dampened(moment, 0.01)) for kind in (Quadratic, LargeQuadratic))
    costs, values = (
        ratio(lambda do=do: do(each, kept), lambda do=do: do(together, kept), rounds=3)
        for do in (lambda q, kept: q.costs(kept), lambda q, kept: q.minimum(kept))
    )
    print(f"\nsurgeon, 64 rows x 768 inputs, by row / together: costs {costs:.1f} x, values {values:.1f} x")
    measured("surgeon, costs of 64 rows together / by row", 1 / costs)
    measured("surgeon, values of 64 rows together / by row", 1 / values)


def test_the_surgeon_on_the_largest_3x3_layer_of_resnet50():
    """512 filters of 512 x 3 x 3 at 7 x 7 places: 512 rows that share a matrix of 4,608 inputs."""
    x, y = torch.randn(576, 512, 7, 7).relu(), torch.arange(576) % 4
    data = lab.wrap(TensorDataset(x, y), TensorDataset(x[:8], y[:8]), val=0.1)
    net = nn.Sequential(
        OrderedDict(conv=nn.Conv2d(512, 512, 3, padding=1, bias=False), pool=nn.AvgPool2d(7), flat=nn.Flatten())
    )
    surgeon = lab.methods.OptimalBrainSurgeon(0.9)
    took, worked = time.perf_counter(), time.process_time()
    run = lab.fit(net, data, surgeon, epochs=0, batch_size=32, progress=False)
    took, worked = time.perf_counter() - took, time.process_time() - worked
    error = run[lab.methods.OptimalBrainSurgeon].errors[0]
    print(f"\nsurgeon, 512 x 4,608, {surgeon.rounds} rounds: {took:.0f} s, {worked:.0f} s of all cores; ", end="")
    print(f"error {error['moved']:.3f}, unmoved {error['unmoved']:.3f}")
    measured("surgeon on 512 x 4,608, seconds of all cores", worked)
