"""Forms made of typed fields: control, default, bounds and help all follow from the class. Nothing is told twice."""

import dataclasses
import re
from ast import literal_eval
from collections.abc import Callable, Collection, Sequence
from types import NoneType
from typing import Any

import ipywidgets as ipw

from .. import _html, typed
from ..errors import ConfigError
from ..masks.schedules import Cubic, Schedule
from .panel import WIDE

SPARSITIES = [*(round(0.005 * step, 3) for step in range(200)), 0.996, 0.997, 0.998, 0.999]
"""The positions of the slider for how much is cut."""
LABEL: dict[str, Any] = {"style": {"description_width": "8em"}, "layout": ipw.Layout(width="97%")}


class Form:
    """The fields of dataclasses as controls, each with a line of help. `settings` are those that the user has set."""

    def __init__(self, *kinds: type, only: Collection[str] = ()):
        self.controls: dict[str, Any] = {}
        self._read: dict[str, Callable[[], Any]] = {}
        self._defaults: dict[str, Any] = {}
        rows: list[ipw.Widget] = []
        for kind, field in [(one, field) for one in kinds for field in dataclasses.fields(one)]:
            if field.init and (not only or field.name in only):
                hint = typed.hints(kind)[field.name]
                control, self._read[field.name] = control_of(field, hint)
                self.controls[field.name], self._defaults[field.name] = control, _default(field)
                rows += [control, ipw.HTML(f'<div style="{SMALL}">{_html.cell(help_of(kind, field.name, hint))}</div>')]
        self.box = ipw.VBox(rows, layout=WIDE)

    def settings(self) -> dict[str, Any]:
        """What has no default, and what is not as its default has it."""
        values = {name: read() for name, read in self._read.items()}
        return {name: value for name, value in values.items() if not _same(value, self._defaults[name])}


SMALL = "line-height:1.3;font-size:11px;opacity:.75;margin:0 0 4px 8.6em;white-space:normal"


def help_of(kind: type, name: str, hint: Any) -> str:
    """A line of help: what the word means everywhere, else a sentence of the class about this field, else its type."""
    if said := COMMON.get(f"{kind.__name__}.{name}") or COMMON.get(name):
        return said
    told = " ".join((kind.__doc__ or "").split())
    sentences = [sentence.rstrip(":;") for sentence in re.split(r"(?<=[.:;])\s+", told) if f"`{name}`" in sentence]
    fitting = [sentence for sentence in sentences if 25 <= len(sentence) <= 160]
    alone = [sentence for sentence in fitting if len(set(re.findall(r"`(\w+)`", sentence))) == 1]
    return [*alone, *fitting, typed.expected(hint)][0].replace("`", "")


COMMON = {
    "sparsity": "Share of the weights that the method removes.",
    "schedule": "Share of the weights that is removed at the end; it rises fast at first and slowly at the end.",
    "criterion": "How each weight is scored: the lowest scores are removed.",
    "scope": "Which weights compete: those of the whole network, or those of each layer.",
    "unit": "What is removed at a time.",
    "begin": "Share of the training after which pruning begins.",
    "end": "Share of the training by which pruning is over.",
    "cuts": "How many times weights are removed.",
    "every_steps": "Optimizer steps from one change of the masks to the next.",
    "drop_fraction": "Share of the kept weights that is exchanged each time.",
    "drop": "Which weights are given up.",
    "power": "How fast the chance of a change of the masks falls.",
    "gamma": "How fast the chance of a change of the masks falls.",
    "crate": "As the authors' code has it: how far the threshold lies from the mean, in standard deviations.",
    "reactivate": "Pruned weights compete again, with the value that they had.",
    "over": "Which weights form a group that goes to zero together.",
    "granularity": "What is removed at a time.",
    "form": "The Hessian of each layer, or of the whole network.",
    "loss": "The loss whose curvature is estimated.",
    "RelevanceL2.alpha": "How fast the pull falls with the gradient; 0 is plain L2.",
    "RelevanceL2.sign": "As the paper prints the formula, or as its code has it.",
    "RelevanceL2.decay": "How the strength falls during the training.",
    "decay_rate": "How fast the strength falls.",
    "kind": "Whether the sensitivity is that of the true class or of all classes.",
    "tau": "How strongly the mixture of Gaussians pulls the weights.",
    "n_of_m": "Keep n of every m weights in a row of inputs, such as (2, 4); None for no pattern.",
    "keep_one": "No layer loses its last weight.",
    "WeightMom.mode": "What a weight is remembered by: a moving average, or its largest value in the window.",
    "WeightMom.threshold": "How the threshold for a low weight is found.",
    "WeightMom.interpretation": "How the paper's importance of a layer is read.",
    "WeightMom.floor": "No layer keeps less than this share of the average density.",
    "WeightMom.window": "Epochs that a weight is watched before it may go.",
    "WeightMom.min_epochs_below": "Epochs of the window in which a weight has to be low before it may go.",
    "WeightMom.watch": "Weights of each layer whose path is kept for figures.",
    "WeightMom.every_epochs": "Epochs from one cut to the next.",
    "WeightMom.beta": "Factor of the moving average; None takes it from the window.",
    "depth_exponent": "How much more deeper layers lose.",
    "basis": "Whether a layer's importance follows from its size or its density.",
    "layer_index": "How layers are counted.",
    "coupled": "The penalty goes through the optimizer, as part of the gradient.",
    "strength": "Factor of the penalty in the loss.",
    "only_prunable": "The penalty leaves biases and norms alone.",
    "rho": "How strongly the weights are pulled to their pruned copy.",
    "updates": "How many times the pruned copy is made anew.",
    "rounds": "In how many rounds the weights are removed.",
    "batches": "Batches from which the scores are estimated.",
    "patience": "Checks without an improvement before it ends.",
    "optimizer": "The rule that updates the weights.",
    "lr": "Learning rate at the start.",
    "lr_schedule": "How the learning rate falls.",
    "batch_size": "Samples in each step.",
    "momentum": "Of SGD; the others ignore it.",
    "weight_decay": "How strongly the optimizer pulls weights to zero.",
    "precision": "Number format of the forward pass.",
    "keep": "Whether the last state is kept or the best one.",
    "collapse": "Whether a cut that leaves nothing of a layer ends the run, or is allowed.",
}
"""What a field means wherever it has this name."""


def control_of(field: "dataclasses.Field[Any]", hint: Any) -> tuple[Any, Callable[[], Any]]:
    """A control for a field, and how to read it."""
    label = {"description": field.name.replace("_", " "), **LABEL}
    if _default(field) is dataclasses.MISSING and (amount := _amount(hint, label)):
        return amount
    default = _default(field) if _default(field) is not dataclasses.MISSING else None
    if words := _words(hint):
        box: Any = ipw.Dropdown(options=[(str(word), word) for word in words], value=default, **label)
    elif isinstance(default, bool):
        box = ipw.Checkbox(default, indent=True, **label)
    elif (span := typed.bounds(hint)) and len(typed.parts(hint)) == 1 and isinstance(default, int | float):
        box = _number(default, span, label)
    else:
        shown = getattr(default, "__name__", str(default))
        text = ipw.Text(shown, continuous_update=False, **label)
        return text, lambda: default if text.value == shown else _literal(text.value, field.name)
    return box, lambda: box.value


def _amount(hint: Any, label: dict[str, Any]) -> tuple[Any, Callable[[], Any]] | None:
    """A slider for how much is cut, where a field asks for a sparsity or its schedule."""
    schedule = len(typed.parts(hint)) == 1 and Schedule in typed.kinds(hint)
    if not schedule and float not in typed.kinds(hint):
        return None
    options = [(f"{share:.1%}", share) for share in SPARSITIES]
    slider = ipw.SelectionSlider(options=options, value=0.9, **label | {"description": "sparsity"})
    return slider, lambda: Cubic(slider.value) if schedule else slider.value


def _words(hint: Any) -> tuple[Any, ...]:
    """What a dropdown offers; none where other values are possible too."""
    words = typed.choices(hint)
    return (*words, *([None] if NoneType in typed.kinds(hint) else [])) if typed.only_words(hint) else ()


def _number(default: float, span: typed.Range, label: dict[str, Any]) -> Any:
    """A field for a number that keeps its bounds.

    It is no slider: a browser would put a default between two steps on the nearer one, and send that back.
    """
    if isinstance(default, int):
        return ipw.BoundedIntText(default, min=int(max(span.low, 0)), max=int(min(span.high, 2**31 - 1)), **label)
    return ipw.BoundedFloatText(default, min=max(span.low, -1e9), max=min(span.high, 1e9), step=None, **label)


def _literal(text: str, name: str) -> Any:
    """A number, None, a list or dict as Python writes it; anything else is a name."""
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError):
        if text.isidentifier():
            return text
        raise ConfigError(f"{name}={text!r} is neither a number nor a name.") from None


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else dataclasses.MISSING


def _same(value: Any, default: Any) -> bool:
    return value is default or (type(value) is type(default) and value == default)


def choice(label: str, options: Sequence[str], value: str) -> Any:
    """A dropdown; a ConfigError where the value is not among its options."""
    return ipw.Dropdown(options=options, value=typed.one_of(label, value, options), description=label, **LABEL)
