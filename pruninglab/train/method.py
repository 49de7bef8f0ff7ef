"""A method: what happens during one training. Six moments, and nothing else."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from ..errors import ConfigError
from ..typed import check_settings
from .run import Run


class Method:
    """Base of all methods; a subclass is a dataclass whose fields are its hyperparameters.

    State belongs into fields declared `field(init=False)` and is made in `on_start`, keyed by parameter name. Every
    `fit` works on a fresh copy of the method (`run.methods`), and checkpoints carry these fields. What trains more than
    once is a recipe, not a method; what only scores weights is a criterion. Subclasses are final: compose, or wrap.
    """

    settled = True
    """False while this method still means to cut: neither early stopping nor `run.best` counts before."""

    observes: ClassVar[bool] = False
    """True for a method that only looks, a log say: the record is the same with it and without it."""

    in_training: ClassVar[bool] = False
    """True for a method that only acts in training: with `epochs=0` it is refused."""

    goes_back = False
    """True for a method that returns to `run.best` while training, and so needs what the optimizer remembered then."""

    sees_pruned = False
    """True for a method that looks at pruned weights or at their gradients, or brings weights back: it needs them all
    computed, and so `fit(compact=True)` refuses it."""

    @property
    def held(self) -> Mapping[str, Tensor]:
        """What this method holds at 0 after every step, beside the masks: True is 0, by parameter name."""
        return {}

    def on_start(self, run: Run) -> None:
        """Model on the device, optimizer not built: may change the model, `run.param_groups`, and cut."""

    def on_loss(self, run: Run) -> Tensor | None:
        """Graph alive: return an extra term of the loss, or None."""

    def on_grad(self, run: Run) -> None:
        """After the backward pass, before the optimizer: `.grad` may be changed."""

    def on_step(self, run: Run) -> None:
        """After the optimizer, before the masks: dense values can still be seen. May cut."""

    def on_epoch(self, run: Run) -> None:
        """After evaluation on the validation split. May cut."""

    def on_end(self, run: Run) -> None:
        """Leave plain weights; the last chance to cut or snap."""

    def __repr__(self) -> str:
        """The hyperparameters; state is not there before a run, and too large to print after one."""
        shown = [f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self) if f.init and f.repr]  # pyright: ignore[reportArgumentType]
        return f"{type(self).__name__}({', '.join(shown)})"

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "__repr__" not in vars(cls):  # @dataclass leaves alone what the class has
            cls.__repr__ = Method.__repr__
        own_checks = vars(cls).get("__post_init__")

        def __post_init__(self: Any) -> None:
            check_settings(self)  # what the types of the fields say
            if own_checks:
                own_checks(self)

        cls.__post_init__ = __post_init__
        if Method not in cls.__bases__:
            raise TypeError(f"{cls.__name__}: methods are final; derive from Method and compose in `fit` instead.")
        if unknown := [name for name in vars(cls) if name.startswith("on_") and name not in MOMENTS]:
            raise TypeError(f"{cls.__name__}.{unknown[0]} would never be called; the moments are {', '.join(MOMENTS)}.")


MOMENTS = tuple(name for name in vars(Method) if name.startswith("on_"))


def fresh(method: object) -> Method:
    """A copy with the same hyperparameters and no state, so that one instance can be used in many runs."""
    if isinstance(method, type) and issubclass(method, Method):
        raise ConfigError(f"{method.__name__} is a class; pass an instance: {method.__name__}(…).")
    if not isinstance(method, Method):
        raise ConfigError(
            f"{method!r} is no method. Expected instances of lab.Method, for example lab.methods.OneShot(0.9); "
            "a criterion goes into a method's `criterion` field."
        )
    if "__dataclass_fields__" not in vars(type(method)):
        raise ConfigError(
            f"{type(method).__name__} needs @dataclass above its class line; its fields are its settings."
        )
    made = dataclasses.replace(method)  # pyright: ignore[reportArgumentType]
    for name in MOMENTS if made.observes else ():
        setattr(made, name, partial(_watched, getattr(made, name), type(made).__name__))
    return made


def _watched(moment: Callable[[Run], Any], name: str, run: Run) -> None:
    """A moment of an observer: what it draws is drawn again by the next, and what it changes is refused."""
    masks, drawn = run.masks, run.randomness.source.get_state()
    answer = moment(run)
    run.randomness.source.set_state(drawn)
    if answer is not None or run.masks is not masks:
        raise ConfigError(f"{name} observes, but gave a term of the loss or changed masks; take its `observes` out.")


def state_of(method: Method) -> dict[str, Any]:
    """The fields that a run makes; those not yet made are left out. An object that a method holds is its own fields."""
    fields = dataclasses.fields(method)  # pyright: ignore[reportArgumentType]
    made = {f.name: getattr(method, f.name) for f in fields if not f.init and hasattr(method, f.name)}
    return {name: vars(value) if dataclasses.is_dataclass(value) else value for name, value in made.items()}
