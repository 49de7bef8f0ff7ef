"""`Choice`: one training as it was chosen. It can be run, and written down as code that runs the same."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .. import methods
from ..data.loading import load
from ..errors import ConfigError
from ..masks.schedules import Schedule
from ..models.building import build
from ..train.fit import fit
from ..train.method import Method
from ..train.run import Run


@dataclass(frozen=True)
class Choice:
    """Data, network and method by name; `settings` are those of the method, `options` those of `fit`."""

    data: str = "digits"
    model: str = "lenet5"
    method: str = "Gradual"
    settings: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 5
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def made(self) -> Method:
        """The method, or a ConfigError that says what is wrong with its settings."""
        return getattr(methods, self.method)(**self.settings)

    def train(self, progress: bool | Callable[[Run], None] = True, record: str | None = None) -> Run:
        method = self.made()  # what is wrong with it is said before data are read
        data = load(self.data, seed=self.seed)
        model = build(self.model, data, seed=self.seed)
        given: Any = {**self.options, **({"record": record} if record else {})}
        return fit(model, data, method, epochs=self.epochs, seed=self.seed, progress=progress, **given)

    def code(self) -> str:
        """A cell that makes exactly this run."""
        return "\n".join(["import pruninglab as lab", "", *self.lines({})])

    def lines(self, names: Mapping[str, str]) -> list[str]:
        """The calls; `names` are fields that stand there as variables, such as `{"seed": "seed"}`."""
        said = {name: names.get(name, as_code(getattr(self, name))) for name in ("data", "model", "epochs", "seed")}
        options = "".join(f", {name}={names.get(name, as_code(value))}" for name, value in self.options.items())
        return [
            f"data = lab.load({said['data']}, seed={said['seed']})",
            f"model = lab.build({said['model']}, data, seed={said['seed']})",
            f"method = lab.methods.{self.method}({self._settings(names)})",
            f"run = lab.fit(model, data, method, epochs={said['epochs']}, seed={said['seed']}{options})",
        ]

    def _settings(self, names: Mapping[str, str]) -> str:
        return ", ".join(
            f"{name}={as_code(value, names.get('sparsity', '') if name in AMOUNTS else '')}"
            for name, value in self.settings.items()
        )

    @property
    def sparsity(self) -> float | None:
        """How much is to be cut, where the method is asked for that."""
        amount = next((self.settings[name] for name in AMOUNTS if name in self.settings), None)
        return getattr(amount, "final", amount)


AMOUNTS = ("sparsity", "schedule")


def as_code(value: Any, amount: str = "") -> str:
    """A setting as Python writes it; `amount` is a variable that stands for how much is cut."""
    if isinstance(value, Schedule):
        initial = f", initial={value.initial!r}" if value.initial else ""
        fields = [f.name for f in dataclasses.fields(value) if f.name not in ("final", "initial")]
        rest = "".join(f", {name}={getattr(value, name)!r}" for name in fields)
        return f"lab.{type(value).__name__}({amount or repr(value.final)}{initial}{rest})"
    if amount:
        return amount
    if not isinstance(value, str | int | float | bool | None | tuple | list | dict):
        raise ConfigError(f"{value!r} cannot be written as code; set it in a cell.")
    return repr(value)
