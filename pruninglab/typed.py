"""Settings say in their types what they may be. This is the one place that reads these types.

    drop: Fraction = 0.5                     # a number from 0 to 1
    drop: Literal["sign", "magnitude"] = …   # one of these words
    criterion: Annotated[str, OneOf(TABLE)]  # one of the keys of a table
    schedule: Annotated[Schedule, "for example lab.Cubic(0.9)"]   # the example stands in the message

From them follow the check and its message (`check_settings`, `checked`), the control in a panel and the choices of a
sweep (`choices`, `bounds`). A class or function checks by hand only what a type cannot say.
"""

import inspect
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cache, wraps
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import ConfigError


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; `above` and `below` leave out the end itself."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        return (value > self.low if self.above else value >= self.low) and (
            value < self.high if self.below else value <= self.high
        )

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.above else f"of at least {self.low:g}"
        if self.high == math.inf:
            return low
        if not self.above and not self.below:
            return f"from {self.low:g} to {self.high:g}"
        return f"{low} and {'below' if self.below else 'at most'} {self.high:g}"


@dataclass(frozen=True, eq=False)
class OneOf:
    """The keys of a table, which may grow: `Annotated[str, OneOf(BY_NAME)]`."""

    table: Collection[str]

    def __contains__(self, value: str) -> bool:
        return value in self.table

    def __str__(self) -> str:
        return f"one of {', '.join(map(repr, self.table))}"


@dataclass(frozen=True)
class Filled:
    """Not empty: `Annotated[Mapping[str, float], Filled()]`."""

    def __contains__(self, value: Collection[Any]) -> bool:
        return len(value) > 0

    def __str__(self) -> str:
        return "(not empty)"


Fraction = Annotated[float, Range(0, 1)]
"""0 and 1 included: a moment of the training, a share of weights."""
PartialFraction = Annotated[float, Range(0, 1, above=True, below=True)]
"""Neither 0 nor 1."""
PositiveFraction = Annotated[float, Range(0, 1, above=True)]
"""1, but not 0: the end of a phase of the training."""
BelowOne = Annotated[float, Range(0, 1, below=True)]
"""0, but not 1: a sparsity, or the factor of a moving average."""
Strength = Annotated[float, Range(0)]
"""Of a penalty, or a learning rate: 0 turns it off."""
Positive = Annotated[float, Range(0, above=True)]
AtLeastOne = Annotated[float, Range(1)]
"""A factor: of compression, or of more epochs."""
LARGEST = 2**63
"""No whole number may be as large: no counter, seed or size of torch holds it."""
Count = Annotated[int, Range(1)]
"""At least one."""
CountFromZero = Annotated[int, Range(0)]
"""0 or more: a number of epochs, or a seed."""


def check(name: str, value: Any, hint: Any) -> Any:
    """The value as its type has it (a NumPy number becomes Python's), or a ConfigError that says what was expected."""
    fits, converted = _converted(value, hint)
    if fits:
        return converted
    meant = _meant(value, hint)
    question = f" Did you mean {meant}?" if meant else ""
    raise ConfigError(f"{name}={_shown(value)}; expected {expected(hint)}.{question}")


def one_of(what: str, name: Any, names: Collection[str]) -> Any:
    """The name, or a ConfigError with those that there are and the nearest of them."""
    return check(what, name, Annotated[str, OneOf(names)])


def _meant(value: Any, hint: Any) -> str:
    """A word that is nearly one of those expected, or the share that a percentage is."""
    if isinstance(value, str):
        return next((repr(word) for word in get_close_matches(value, map(str, choices(hint)), 1)), "")
    if isinstance(value, Integral) and abs(int(value)) >= LARGEST:
        return "a number below 2**63"
    if isinstance(value, Mapping):
        return next((meant for one in value.values() if (meant := _meant(one, hint))), "")
    span = next((span for part in parts(hint) if (span := bounds(part))), None)
    is_percent = span and span.low >= 0 and span.high == 1 and _number(value, float)[0] and 1 < float(value) < 100
    return f"{float(value) / 100:g}" if is_percent else ""


def check_settings(settings: Any, owner: str = "") -> None:
    """Check all fields of a dataclass that its user sets, in place. Messages name the class, or the `owner`."""
    for name, hint in hints(type(settings)).items():
        value = getattr(settings, name)
        converted = check(f"{owner or type(settings).__name__}: {name}", value, hint)
        if converted is not value:
            object.__setattr__(settings, name, converted)  # frozen ones too


class Checked:
    """Base of frozen dataclasses whose fields say in their types what they may be; `super().__post_init__()` first."""

    def __post_init__(self) -> None:
        check_settings(self)


@cache
def hints(kind: type) -> dict[str, Any]:
    """The types of the fields that a user sets, by name."""
    found = get_type_hints(kind, include_extras=True)
    return {field.name: found[field.name] for field in fields(kind) if field.init}


def check_arguments(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call as the annotations of the function have them, or a ConfigError that names both."""
    known, caller = _annotations(function), function.__qualname__.removesuffix(".__init__")
    return {
        name: check(f"{caller}: {name}", value, known[name]) if name in known else value
        for name, value in given.items()
    }


P = ParamSpec("P")
Made = TypeVar("Made")


def checked(function: Callable[P, Made]) -> Callable[P, Made]:
    """Before a function begins, refuse each argument that its annotation rules out."""
    form = inspect.signature(function)
    several = {name for name, p in form.parameters.items() if p.kind is p.VAR_POSITIONAL}
    single = {name for name, p in form.parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}

    @wraps(function)
    def call(*args: P.args, **named: P.kwargs) -> Made:
        given = form.bind(*args, **named)
        for name in several & given.arguments.keys():
            values = given.arguments[name]
            given.arguments[name] = tuple(check_arguments(function, {name: value})[name] for value in values)
        given.arguments |= check_arguments(function, {k: v for k, v in given.arguments.items() if k in single})
        return function(*given.args, **given.kwargs)

    return call


@cache
def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    return get_type_hints(function, include_extras=True)


def choices(hint: Any) -> tuple[Any, ...]:
    """The words of a `Literal` or of a table, also beside None or other types; none where anything else will do."""
    return tuple(word for part in parts(hint) for word in _words(part))


def _words(hint: Any) -> Iterable[Any]:
    if get_origin(hint) is Literal:
        return get_args(hint)
    return next((extra.table for extra in get_args(hint) if isinstance(extra, OneOf)), ())


def bounds(hint: Any) -> Range | None:
    """The range of a number, where its type says one."""
    for part in parts(hint):
        if get_origin(part) is Annotated:
            return next((extra for extra in get_args(part)[1:] if isinstance(extra, Range)), None)
    return None


def kinds(hint: Any) -> tuple[Any, ...]:
    """The plain types that a value may have, without their ranges and examples."""
    return tuple(get_args(part)[0] if get_origin(part) is Annotated else part for part in parts(hint))


def only_words(hint: Any) -> bool:
    """Whether what can be typed in is one of a few words, or None."""
    others = [part for part in parts(hint) if not choices(part)]
    return bool(choices(hint)) and all(part is NoneType or get_origin(part) is Callable for part in others)


def expected(hint: Any) -> str:
    """What a type takes, in words."""
    if len(joined := parts(hint)) > 1:
        words = [expected(part) for part in joined]
        return f"{', '.join(words[:-1])} or {words[-1]}"
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _ranged(*arguments)
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(map(repr, arguments))
    if origin is tuple and Ellipsis not in arguments:
        return f"{len(arguments)} values, {', '.join(map(expected, arguments))}"
    if origin in _MAPPINGS:
        return f"a dict of {' to '.join(map(_plural, arguments))}" if arguments else "a dict"
    if origin in _SEQUENCES:
        return f"a list of {_plural(arguments[0])}" if arguments else "a list"
    if getattr(hint, "_is_protocol", False):
        first = (hint.__doc__ or "").split(".")[0]
        return first[:1].lower() + first[1:]
    name = getattr(hint, "__name__", str(hint))
    return _WORDS.get(origin or hint) or f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a finite number",
    str: "a name",
    bool: "True or False",
    NoneType: "None",
    Callable: "a function",
    dict: "a dict",
    list: "a list",
}
_MAPPINGS = (dict, Mapping)
_SEQUENCES = (list, tuple, Sequence, Collection, set, frozenset)


def _ranged(kind: Any, *extras: Any) -> str:
    if tables := [str(extra) for extra in extras if isinstance(extra, OneOf)]:
        return tables[0]
    spans = [f" {extra}" for extra in extras if isinstance(extra, Range | Filled)]
    examples = [f", {extra}" for extra in extras if isinstance(extra, str)]
    return "".join(["a number" if spans and kind is float else expected(kind), *spans, *examples])


def _plural(hint: Any) -> str:
    words = {str: "names", float: "numbers", int: "whole numbers", Any: "values"}
    if get_origin(hint) is Annotated:
        kind, *extras = get_args(hint)
        return " ".join([_plural(kind), *(str(extra) for extra in extras if isinstance(extra, Range))])
    if isinstance(hint, type) and hint not in words and hint not in _WORDS:
        return f"{hint.__name__}s"
    return words.get(hint, expected(hint))


def parts(hint: Any) -> tuple[Any, ...]:
    """The types that a union joins, or the one type; of a type variable its bound."""
    if isinstance(hint, TypeVar):
        hint = hint.__bound__ or Any
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}…"


def _converted(value: Any, hint: Any) -> tuple[bool, Any]:
    """Whether a value fits a type, and the value as that type has it."""
    for part in parts(hint):
        fits, converted = _one(value, part)
        if fits:
            return True, converted
    return False, value


def _one(value: Any, hint: Any) -> tuple[bool, Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True, value
    if origin is Annotated:
        fits, number = _converted(value, arguments[0])
        inside = fits and all(number in extra for extra in arguments[1:] if isinstance(extra, Range | OneOf | Filled))
        return inside, number
    if origin is Literal:
        return any(value == word and type(value) is type(word) for word in arguments), value
    if hint in (int, float):
        return _number(value, hint)
    if hint is None:
        return value is None, value
    if origin is Callable or hint is Callable:
        return callable(value), value
    if origin in (*_MAPPINGS, *_SEQUENCES):
        return _holds(value, origin, arguments), value
    if origin is Iterable:
        return isinstance(value, Iterable) and not isinstance(value, str | Mapping), value
    kind = origin or hint
    return not _tells_instances(kind) or isinstance(value, kind), value


@cache
def _tells_instances(kind: Any) -> bool:
    """Whether `isinstance` may be asked: of a class, but not of a protocol that cannot say."""
    unsaid = getattr(kind, "_is_protocol", False) and not getattr(kind, "_is_runtime_protocol", False)
    return isinstance(kind, type) and kind is not Any and not unsaid  # Any is a class, too


def _holds(value: Any, origin: Any, arguments: tuple[Any, ...]) -> bool:
    """Whether a value is a collection of this kind, and each item of the type that is said."""
    if origin in _MAPPINGS:
        return isinstance(value, Mapping) and _each(value, arguments[0]) and _each(value.values(), arguments[1])
    if origin is tuple and Ellipsis not in arguments:
        fits = isinstance(value, list | tuple) and len(value) == len(arguments)
        return fits and all(_each([v], kind) for v, kind in zip(value, arguments, strict=True))
    return isinstance(value, Collection) and not isinstance(value, str | Mapping) and _each(value, arguments[0])


def _each(values: Iterable[Any], hint: Any) -> bool:
    if isinstance(hint, type) and hint not in (int, float) and _tells_instances(hint):
        return all(isinstance(value, hint) for value in values)  # many tensors, in every step of some methods
    return all(_converted(value, hint)[0] for value in values)


def _number(value: Any, kind: type) -> tuple[bool, Any]:
    """Booleans are no numbers here, 2.0 is no whole number, and NaN and infinity are none at all."""
    wanted = Integral if kind is int else Real
    if isinstance(value, bool) or not isinstance(value, wanted):
        return False, value
    if isinstance(value, Integral):
        return abs(int(value)) < LARGEST, value if type(value) is int else int(value)
    number = float(value)  # NumPy's numbers, fractions.Fraction
    return math.isfinite(number), value if type(value) is float else number
