"""The tables of the papers this package implements, as data, with what is known to be wrong with them.

    papers.published("MNIST", "lenet5")     accuracy and sparsity of every printed row, to stand beside measured ones
    papers.table("admm", 5)                 one table as it is printed
    papers.values()                         every cell of every table: row, column, value, source, caveat

They are read from papers.json beside this file. None of them has a number of seeds or a spread beside a number. The
survey (S. Hooker, Pruning deep neural networks, 2019) has figures and no table. The curves of its Figures 3 and 4 come
from the authors' own files: `published("WMT14")`, and ResNet-50's rows of `published("ImageNet", "resnet50")`.
"""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import ConfigError
from ..typed import checked


@dataclass(frozen=True)
class Table:
    """One printed table."""

    paper: str
    number: int
    caption: str
    body: list[str]
    """Its rows, the first its head, `|` between the cells."""
    data: str = ""
    model: str = ""
    metric: str = ""
    """Of the accuracies: top-1 or top-5; BLEU of translations."""
    counted: str = ""
    """Of what the sparsity is: the column of a record to compare it with, `sparsity_…`."""
    file: str = ""
    """Where the authors keep its numbers, if they are printed in a figure alone."""
    copied: bool = False
    """Its numbers are those of another network and data set: nothing can be compared with them."""
    of_all: list[str] = field(default_factory=list)
    """What is known to be wrong with the whole table."""
    of_row: dict[str, str] = field(default_factory=dict)
    """And with single rows."""

    @property
    def source(self) -> str:
        if self.file:
            return f"{PAPERS[self.paper]}; {self.file}"
        return f"{PAPERS[self.paper]}, Table {'I' * self.number if self.paper == 'weightmom' else self.number}"

    def frame(self) -> pd.DataFrame:
        """As printed, text in every cell."""
        head, *rows = [[cell.strip() for cell in line.split("|")] for line in self.body]
        return pd.DataFrame(rows, columns=pd.Index(head))

    def caveat(self, row: str) -> str:
        return " ".join(filter(None, (self.of_row.get(row, ""), *self.of_all)))


_READ = json.loads(Path(__file__).with_name("papers.json").read_text(encoding="utf-8"))
PAPERS: dict[str, str] = _READ["papers"]
TABLES = [Table(**one) for one in _READ["tables"]]


def table(paper: str, number: int) -> pd.DataFrame:
    """One table as it is printed; `attrs` hold its caption, source and caveats."""
    found = next((t for t in TABLES if (t.paper, t.number) == (paper, number)), None)
    if found is None:
        known = ", ".join(f"{t.paper} {t.number}" for t in TABLES)
        raise ConfigError(f"there is no table {number} of {paper!r}; expected one of {known}.")
    frame = found.frame()
    frame.attrs = {"caption": found.caption, "source": found.source, "caveats": [*found.of_all, *found.of_row.values()]}
    return frame


def values() -> pd.DataFrame:
    """Every cell that holds something: paper, table, row, column, as printed, as number with its unit, caveat."""
    rows = []
    for one in TABLES:
        frame = one.frame()
        labels = 2 if one.paper == "weightmom" else 1
        for record in frame.to_dict("split")["data"]:
            row = ", ".join(record[:labels])
            for column, printed in list(zip(frame.columns, record, strict=True))[labels:]:
                if printed.strip("-–"):
                    value, unit = number(printed)
                    said = {"paper": one.paper, "table": one.number, "row": row, "column": column, "printed": printed}
                    caveat = one.caveat(record[0])
                    rows.append({**said, "value": value, "unit": unit, "source": one.source, "caveat": caveat})
    return pd.DataFrame(rows)


@checked
def published(data: str | None = None, model: str | None = None, *, copied: bool = False) -> pd.DataFrame:
    """Accuracy and sparsity of every printed row that has both, as fractions, in the words of this package's records.

    `metric` says top-1 or top-5, `counted` of what the sparsity is: compare it with the column `sparsity_` + counted.
    Names may be those of records: `torchvision:alexnet` is the papers' alexnet, and a folder is the data set that its
    own name says, `folder:/data/ImageNet`. WeightMom's two tables hold copied numbers, and are there with `copied=True`
    alone.

    >>> lab.analysis.published('MNIST', 'lenet5').shape[0] > 10
    True
    """
    rows = [row for one in TABLES if one.metric and (copied or not one.copied) for row in _rows(one)]
    asked = [(column, _plain(name)) for column, name in (("data", data), ("model", model)) if name is not None]
    kept = [row for row in rows if all(_plain(row[column]) == wanted for column, wanted in asked)]
    return pd.DataFrame(kept, columns=pd.Index(rows[0]))


def _plain(name: str) -> str:
    """What a name of a record says: the last part of a path, without a prefix, capitals and dashes."""
    kind, _, rest = name.partition(":")
    last = Path(rest).name if kind == "folder" else rest if kind == "torchvision" else name
    plain = re.sub(r"[\W_]", "", last.lower())
    return "imagenet" if plain in ("imagenet1k", "ilsvrc2012", "imagenet2012") else plain


def _rows(one: Table) -> list[dict[str, Any]]:
    found = []
    for record in one.frame().to_dict("records"):
        first, *others = record
        if one.paper == "weightmom":  # a column for each density; the baseline's stands under the first
            told = [(record["Method"], record[head], 1 - number(head)[0]) for head in others[1:]]
            told = [(told[0][0], told[0][1], 0.0)] if record["Method"] == "Baseline" else told
        elif first == "Pruning Rate":  # a column for each method
            told = [(head, record[head], 1 - 1 / number(record[first])[0]) for head in others]
        elif "Rate" in record:
            told = [(record[first], record[others[0]], 1 - 1 / number(record["Rate"])[0])]
        else:
            said, score = record["Sparsity (%)"], record.get("BLEU") or record["Accuracy (%)"]
            told = [(record[first], score, 0.0 if said == "–" else number(said)[0] / 100)]
        for method, accuracy, sparsity in told:
            found.append(
                {
                    "method": method,
                    "data": one.data,
                    "model": one.model or str(record["Model"]).lower(),
                    "accuracy": round(number(accuracy)[0] / (1 if "%" in accuracy else 100), 6),
                    "metric": one.metric,
                    "sparsity": round(sparsity, 6),
                    "counted": one.counted,
                    "source": one.source,
                    "caveat": one.caveat(record[first]) if first != "Model" else one.caveat(""),
                }
            )
    return found


_SCALE = {"K": 1e3, "M": 1e6}


def number(printed: str) -> tuple[float, str]:
    """`"6.05K"` is 6050, `"30×"` 30 times, `"80.2%"` 0.802; what is no number is NaN. With the unit."""
    parts = re.fullmatch(r"([\d.,]+(?:e-?\d+)?)\s*([KM]?)(B?)([%×]?)(.*)", printed)
    if not parts:
        return math.nan, ""
    digits, scale, byte, sign, rest = parts.groups()
    if rest and not rest.startswith("("):
        return math.nan, ""
    value = float(digits.replace(",", "")) * _SCALE.get(scale, 1.0) / (100 if sign == "%" else 1)
    return round(value, 9), {"%": "share", "×": "times"}.get(sign, "bytes" if byte else "")
