"""A notebook's parameters: what its tagged cell declares, and grids of values that are checked against it.

    density: float = 0.1  # share of the weights that is left, between 0 and 1
    method: str = "random"  # one of random, magnitude or gradual

The annotation is the type. A help comment may say more: `one of …`, `between … and …`, or the field that the parameter
sets, such as `WeightMom.mode`, `tickets.rewind` or `fit.optimizer`, whose type then has the choices and the bounds. The
words of this package mean the same everywhere: sparsity and density are shares, and seeds and epochs are counted from
0. `data_name` and `model_name` are names that `load` and `build` know.
"""

import ast
import hashlib
import io
import json
import math
import re
import tokenize
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from nbformat import NotebookNode

from .. import methods, recipes
from ..data.loading import available
from ..errors import ConfigError
from ..models.building import available as models_by_name
from ..train.options import Options
from ..typed import BelowOne, CountFromZero, PositiveFraction, Range, bounds, checked, choices, expected, hints

DEEPEST = 20
"""Lists in lists of a grid."""
MOST = 1_000_000
"""Cells of a grid."""
TYPES: dict[str, tuple[type, ...]] = {kind.__name__: (kind,) for kind in (int, str, bool, list, dict)}
TYPES |= {"float": (float, int), "None": (type(None),)}
BY_NAME = {"sparsity": BelowOne, "density": PositiveFraction, "seed": CountFromZero, "epochs": CountFromZero}
"""What a number is everywhere in the package, by its name."""


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell."""

    name: str
    kinds: tuple[str, ...]
    """Names in `TYPES`; none where the annotation is something else, and then any value will do."""
    default: Any
    help: str

    def parse(self, text: str) -> list[Any]:
        """The values in `0.1,0.05` or `0:3` (as in Python, without the 3), of this parameter's type."""
        if "str" in self.kinds:
            return [part.strip() for part in text.split(",")]
        if "int" in self.kinds and (span := re.fullmatch(r"\s*(-?\d+):(-?\d+)(?::(-?\d+))?\s*", text)):
            start, stop, step = (int(number) if number else 1 for number in span.groups())
            if not step or not 0 < len(values := range(start, stop, step)) <= MOST:
                raise ConfigError(f"{self.name}={text} holds no number, or above {MOST:,}; 0:3 is 0, 1 and 2.")
            return list(values)
        words = {"true": "True", "false": "False", "none": "None"}
        spelled = re.sub(r"\b(?:true|false|none)\b", lambda word: words[word.group()], text)
        try:
            values = list(ast.literal_eval(f"[{spelled}]"))
        except (ValueError, SyntaxError):
            values = []
        if not values:
            raise ConfigError(
                f"{self.name}={text} cannot be read as {self._kind}; several values are joined by commas."
            )
        return values

    def check(self, value: Any) -> Any:
        """The value in the declared type, or a ConfigError."""
        allowed = tuple(t for kind in self.kinds for t in TYPES[kind])
        if hasattr(value, "item"):  # a number of NumPy's
            value = value.item()
        wrong = allowed and (not isinstance(value, allowed) or (isinstance(value, bool) and "bool" not in self.kinds))
        if wrong or (isinstance(value, float) and not math.isfinite(value)):
            raise ConfigError(f"{self.name}={value!r} is wrong; the notebook expects {self._kind} ({self.help}).")
        if "float" in self.kinds and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if value is not None and (expected := self._impossible(value)):
            raise ConfigError(f"{self.name}={value!r} is impossible; expected {expected}.")
        return value

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it may be, by the help comment or by the type of the field that this names."""
        if said := re.search(r"\bone of (.+)", self.help):
            return tuple(name for name in re.split(r",\s*|\s+or\s+", said.group(1)) if name)
        return choices(_field(self.help))

    @property
    def _kind(self) -> str:
        return " or ".join(self.kinds) or "a value"

    def _impossible(self, value: Any) -> str:
        """What was expected instead, or nothing."""
        known = self.choices or _names(self.name, value)
        if known and str(value) not in known:
            near = get_close_matches(str(value), known, 1)
            return f"one of {', '.join(known)}" + (f"; did you mean {near[0]}?" if near else "")
        span = bounds(self._type)
        return expected(self._type) if span and isinstance(value, int | float) and value not in span else ""

    @property
    def _type(self) -> Any:
        """The type that the help comment says or names, or that this name has everywhere in the package."""
        if said := re.search(r"\bbetween (-?[\d.]+(?:e-?\d+)?) and (-?[\d.]+(?:e-?\d+)?)", self.help):
            low, high = map(float, said.groups())
            return Annotated[float, Range(low, high)]
        return _field(self.help) or BY_NAME.get(re.sub(r"\w+_epochs$", "epochs", self.name))


def _field(text: str) -> Any:
    """The type of the field that a help comment names, if any."""
    for owner, name in re.findall(r"\b(\w+)\.(\w+)\b", text):
        known: Mapping[str, Any] = {}
        if owner in methods.__all__:
            known = hints(getattr(methods, owner))
        elif owner in recipes.__all__:
            known = get_type_hints(getattr(recipes, owner), include_extras=True)
        elif owner == "fit":
            known = hints(Options)
        if name in known:
            return known[name]
    return None


def _names(name: str, value: Any) -> Sequence[str]:
    """The names that a parameter of this name may have; none where anything will do."""
    if name == "data_name" and not str(value).startswith("folder:"):
        return [*(known for known, *_ in available()), "folder:PATH"]
    if name == "model_name" and not str(value).startswith("torchvision:"):
        return [*models_by_name(), "torchvision:NAME"]
    return ()


@checked
def declared(notebook: NotebookNode) -> dict[str, Parameter]:
    """The parameters of a notebook that is read already, by name."""
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise ConfigError(f"{len(tagged)} cells of the notebook are tagged `parameters`; expected one.")
    try:
        return _declared(tagged[0].source)
    except (SyntaxError, tokenize.TokenError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ConfigError(f"the cell tagged `parameters` cannot be read as Python: {error}.") from None


def _declared(source: str) -> dict[str, Parameter]:
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found: dict[str, Parameter] = {}
    for statement in ast.parse(source).body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=ast.expr() as value):
                kinds = tuple(part.strip() for part in ast.unparse(annotation).split("|"))
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                kinds = (type(_literal(value)).__name__,)
            case _:
                continue
        kinds = tuple(kind.partition("[")[0] for kind in kinds)
        kinds = kinds if all(kind in TYPES for kind in kinds) and kinds != ("None",) else ()
        found[name] = Parameter(name, kinds, _literal(value), comments.get(statement.end_lineno or 0, ""))
    return found


def _literal(value: ast.expr) -> Any:
    try:
        return ast.literal_eval(value)
    except (ValueError, TypeError):
        return None


@checked
def grid(known: Mapping[str, Parameter], given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every combination of the given values, the last name varying fastest, each value checked.

    Values are a list or a range, one value, or text as on the command line: `"0.1,0.05"`, `"0:3"`.
    """
    axes: dict[str, list[Any]] = {}
    for name, values in given.items():
        if name not in known:
            near = get_close_matches(name, known, 1)
            raise ConfigError(
                f"the notebook has no parameter {name!r}{f'; did you mean {near[0]!r}?' if near else ''}. "
                f"It has {', '.join(known) or 'none'}."
            )
        parameter = known[name]
        if isinstance(values, str):
            values = parameter.parse(values)
        elif isinstance(values, Mapping) or not isinstance(values, Iterable):
            values = [values]
        axes[name] = [parameter.check(value) for value in values]
        if not axes[name]:
            raise ConfigError(f"{name} has no value; give at least one.")
        if len({repr(value) for value in axes[name]}) < len(axes[name]):
            raise ConfigError(f"{name} has a value twice: {', '.join(map(repr, axes[name]))}.")
    if (cells := math.prod(map(len, axes.values()))) > MOST:
        raise ConfigError(f"this grid has {cells:,} cells; expected at most {MOST:,}.")
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


@checked
def read_grid(path: str | Path) -> dict[str, Any]:
    """A grid from a TOML or YAML file: a name and its values on each line."""
    path = Path(path)
    if path.suffix not in (".toml", ".yaml", ".yml"):
        raise ConfigError(f"{path} cannot be read: it is no grid file; its name has to end with .toml, .yaml or .yml.")
    try:
        text = path.read_text(encoding="utf-8")
        content: Any = tomllib.loads(text) if path.suffix == ".toml" else _yaml(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        kind = "names that are no text" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise ConfigError(f"{path} holds {kind}; expected a name and its values on each line.")
    return content


def _yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise ValueError("it needs PyYAML: pip install pyyaml, or write the grid as TOML") from None
    try:
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST or isinstance(event, yaml.AliasEvent):
                raise ValueError(f"a grid has no aliases (*name), and no more than {DEEPEST} lists in lists")
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(error) from None


@checked
def source_hash(notebook: NotebookNode) -> str:
    """Of what a notebook does: its code, parameters' defaults among it, without prose and outputs."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()[:12]


@checked
def name_of(parameters: Mapping[str, Any], source: str) -> str:
    """A folder's name that can be read: the parameters, and a hash of them and of the notebook's code."""
    return named(parameters, source)


def named(parameters: Mapping[str, Any], source: str) -> str:
    """`name_of` without its checks, for a grid that was checked as a whole."""
    exact = json.dumps([source, sorted(parameters.items())], default=str)
    said = "_".join(f"{name}={_plain(value)}" for name, value in parameters.items())
    said = said.encode()[:120].decode(errors="ignore")  # file systems count bytes
    return f"{said}_{hashlib.sha256(exact.encode()).hexdigest()[:8]}".lstrip("_")


def _plain(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
    return re.sub(r"[^\w.,+-]+", "-", text).strip("-")
