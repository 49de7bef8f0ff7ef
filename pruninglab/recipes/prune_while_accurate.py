"""Prune under a regularizer while accuracy allows, then train without it: Bonetta and Cancelliere, 2022, section 2."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal, Unpack

from torch import nn

from ..data.dataset import Data
from ..data.loading import load
from ..errors import ConfigError
from ..methods.cuts.accuracy_gate import PruneWhileAccurate
from ..methods.penalties.lobster import LOBSTER
from ..methods.penalties.plain import L1, L2
from ..methods.penalties.relevance import RelevanceL2
from ..methods.penalties.sensitivity import Sensitivity
from ..models import build
from ..train.checkpoints import write_record
from ..train.lr_schedules import LRSchedule
from ..train.method import Method
from ..train.options import TrainingOptions
from ..train.run import Run
from ..typed import CountFromZero, PartialFraction, Strength
from .stages import Stages, recipe, refuse_own, tag_choice, tags_of
from .trials import Trials

_STEADY = {"batch_size": 100, "pruning_lr_schedule": "constant", "lr_schedule": "constant"}
_ADAM = {**_STEADY, "optimizer": "adam", "lr": 1e-3}
_SGD = {**_STEADY, "optimizer": "sgd", "lr": 1e-4}
_often = partial(PruneWhileAccurate, prune_fraction=0.04, every_steps=250, counting="epoch")
_rarely = partial(PruneWhileAccurate, prune_fraction=0.01, every_steps=2500, counting="epoch")
_TABLE = (
    ("MNIST", RelevanceL2(1e-3), _often(0.987), 0, 120, 5, _ADAM),
    ("FashionMNIST", RelevanceL2(1e-3), _often(0.897), 24, 81, 50, _ADAM),
    ("ImageNet", RelevanceL2(1e-4), _rarely(0.685), 0, 30, 30, _SGD),
)
_HEAD = ("regularizer", "pruning", "dense", "epochs", "finetune")
PAPER: dict[str, dict[str, Any]] = {
    name: {**dict(zip(_HEAD, settings, strict=True)), **options} for name, *settings, options in _TABLE
}
"""Table 2, what the text adds and, where it leaves something open, the authors' code: as arguments of the recipe."""
Regularizer = RelevanceL2 | L2 | L1 | LOBSTER | Sensitivity


@recipe
def prune_while_accurate(
    model: nn.Module | Run,
    data: Data,
    pruning: PruneWhileAccurate,
    *,
    epochs: CountFromZero,
    finetune: CountFromZero,
    regularizer: Method | Sequence[Method] = (),
    dense: CountFromZero = 0,
    finetune_lr: Strength | None = None,
    pruning_lr_schedule: LRSchedule = "constant",
    folder: str | Path | None = None,
    **options: Unpack[TrainingOptions],
) -> Trials:
    """Train `epochs` with `regularizer` and `pruning`, then `finetune` epochs without them, under the mask.

    Before that come `dense` epochs without either, where `model` is no finished `Run`. Each phase ends at its best
    state by validation, "pruned" at the best among those at the final mask, and the next begins there. As in the
    authors' code, the learning rate stays at `lr` during pruning. The accuracy of the trial "pruned" is that before
    fine-tuning. If it misses its target, so does the last phase. `folder` holds a checkpoint and a record of each
    phase; the same call goes on from them.
    """
    refuse_own("prune_while_accurate", options, "keep")
    together = [regularizer] if isinstance(regularizer, Method) else list(regularizer)
    stages = Stages("prune_while_accurate", data, folder, {**options, "keep": "best"}, finetune_lr)
    start = stages.dense(model, dense) if dense and not isinstance(model, Run) else model
    pruned = stages.train("pruned", start, *together, pruning, epochs=epochs, lr_schedule=pruning_lr_schedule)
    tuned = stages.finetune(pruned, epochs=finetune)
    if (pruned.status, tuned.status) == ("target_missed", "done"):
        tuned.inherit_miss(pruned)
        if folder:
            write_record(tuned, Path(folder, "fine-tuned.json"))
    return stages.made


@recipe
def bonetta(
    task: Literal["MNIST", "FashionMNIST", "ImageNet"] = "MNIST",
    protocol: Literal["holdout", "paper"] = "holdout",
    *,
    model: nn.Module | Run | None = None,
    data: Data | None = None,
    pruning: PruneWhileAccurate | None = None,
    regularizer: Method | Sequence[Method] | None = None,
    epochs: CountFromZero | None = None,
    finetune: CountFromZero | None = None,
    dense: CountFromZero | None = None,
    finetune_lr: Strength | None = None,
    pruning_lr_schedule: LRSchedule | None = None,
    folder: str | Path | None = None,
    **options: Unpack[TrainingOptions],
) -> Trials:
    """The paper's experiment by the name of its data, with every setting of its Table 2.

    What is given takes the place of a setting of the paper. `protocol="paper"` trains on all 60,000 images of MNIST.
    The bound, the best state and the end look at the test images, as in the authors' code; the records say so.
    `"holdout"` holds 5,000 training images out for that, which for FashionMNIST is the paper's protocol too. ImageNet
    needs `data` and the trained `model`, the authors' one without dropout: `build("torchvision:vgg16", data,
    weights=PATH, dropout=0.0)`. Given `data` is taken as it is split. Biases are pruned too and count into the
    sparsity.

    Deviations: as in the authors' code, λ falls to 0 within an epoch of the last cut, and evaluations are counted anew
    in each epoch. The paper has an exponential decay without a rate, `regularizer=RelevanceL2(1e-3,
    decay="exponential")`, and says nothing of the counting. Images of FashionMNIST are normalised by their own mean and
    deviation, not by those of MNIST. Cutting ends 25 evaluations after the best since the last cut.
    """
    if task == "ImageNet" and (data is None or model is None):
        raise ConfigError("for ImageNet give data=lab.load('folder:PATH') and model=, a trained VGG-16.")
    seed = options.get("seed", 0)
    if data is None:
        data = load(task, seed=seed, val="test" if (task, protocol) == ("MNIST", "paper") else 1 / 12)
    if model is None:
        model = build("lenet5", data, seed=seed)
    own = {"pruning": pruning, "regularizer": regularizer, "epochs": epochs, "finetune": finetune, "dense": dense}
    own |= {"finetune_lr": finetune_lr, "pruning_lr_schedule": pruning_lr_schedule, "folder": folder}
    given: dict[str, Any] = {name: value for name, value in own.items() if value is not None}
    tags = tags_of("bonetta", options)
    settings: dict[str, Any] = {**PAPER[task], "biases": True, **given, **options, "tags": tags}
    return prune_while_accurate(model, data, **settings)


@recipe
def search(
    model: nn.Module | Run,
    data: Data,
    pruning: PruneWhileAccurate,
    *,
    regularizer: Regularizer,
    at_least: float,
    strengths: Sequence[Strength] = (),
    bounds: Sequence[float] = (),
    prune_fractions: Sequence[PartialFraction] = (),
    epochs: CountFromZero,
    finetune: CountFromZero,
    dense: CountFromZero = 0,
    finetune_lr: Strength | None = None,
    pruning_lr_schedule: LRSchedule = "constant",
    folder: str | Path | None = None,
    **options: Unpack[TrainingOptions],
) -> Trials:
    """`prune_while_accurate` with every combination of λ, bound and share of a cut.

    What is left out stays as `regularizer` and `pruning` have it. By validation accuracy alone, the sparsest result
    that has `at_least` so much is chosen, or else the most accurate one: `trials["fine-tuned"]`. The table has a column
    for each setting and `chosen`. The dense phase is trained once for all. `folder` holds a folder for each
    combination.
    """
    bound = "below_dense" if pruning.lower_bound is None else "lower_bound"
    axes = {
        "strength": strengths or [regularizer.strength],
        bound: bounds or [getattr(pruning, bound)],
        "prune_fraction": prune_fractions or [pruning.prune_fraction],
    }
    grid = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    tried = [
        (cell, replace(regularizer, strength=cell["strength"]), replace(pruning, **dict([*cell.items()][1:])))
        for cell in grid
    ]
    stages = Stages("search", data, folder, {**options, "keep": "best"})
    made, start = stages.made, stages.dense(model, dense) if dense and not isinstance(model, Run) else model
    if stages.over:
        return made
    how: dict[str, Any] = {"epochs": epochs, "finetune": finetune, "finetune_lr": finetune_lr, **options}
    how["pruning_lr_schedule"] = pruning_lr_schedule
    ends: list[int] = []  # positions in `made`
    for cell, pull, gate in tried:
        at = Path(folder, ",".join(f"{name}-{value}" for name, value in cell.items())) if folder else None
        how["tags"] = tags_of("search", options, **cell)
        for trial in prune_while_accurate(start, data, gate, regularizer=pull, folder=at, **how):
            made.add(trial.method, trial.run, trial.record, **cell, chosen=False)
        ends.append(len(made) - 1)
        if made.last.interrupted:
            break
    reached = [made.made[i] for i in ends]
    enough = [trial for trial in reached if trial.run.val >= at_least]
    wanted = (lambda t: (t.run.sparsity, t.run.val)) if enough else (lambda t: (t.run.val, t.run.sparsity))
    max(enough or reached, key=wanted).columns["chosen"] = True
    tag_choice(made)
    return made
