"""What a comparison asks of its records: the rule, what breaks it, and what a study says that it compares."""

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import ConfigError, DataError
from ..results.protocol import ENTRIES
from ..typed import one_of

IN_PAIR = ("split", "normalisation", "teacher", "dense_hash", "new_weights")
"""Columns that a seed decides: alike in all runs of one seed. The other columns of the rule are alike in all runs."""
SHOWN = ("epochs", "processor")
"""Columns that are shown where they differ, and never refused."""
IN_ALL = (
    *("data", "model", "form", "chosen_on", "metric"),
    *(e for e in ENTRIES if e not in (*IN_PAIR, *SHOWN)),
    "total_steps",
)
SAID = {
    "data": "data set",
    "form": "form of the network",
    "chosen_on": "images that choices were made on",
    "dense_hash": "dense start",
    "new_weights": "draw of the initial weights",
    "total_steps": "number of steps in all",
    "lr": "learning rate",
    "lr_schedule": "schedule of the learning rate",
    "keep": "state that is kept",
    "torch": "version of torch",
}
"""Columns that a refusal calls otherwise than their name does."""
STUDY = "study.toml"
WORDS = {"form": "model", "dense_hash": "start", "new_weights": "start", "total_steps": "steps"}
"""Columns that `allow` calls otherwise."""
ALLOWED = (*dict.fromkeys(WORDS.get(column, column) for column in (*IN_ALL, *IN_PAIR)), "seeds")
Broken = list[tuple[str, str]]
"""What breaks the rule: the column, or "seeds", and a sentence."""


@dataclass(frozen=True)
class Study:
    """A file `study.toml` in a folder of records says what they are there to compare.

    `allow` is what differs on purpose and `why` the reason. `methods` are columns, tags for example, that name the
    method of a record together.
    """

    why: str = ""
    methods: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()

    @classmethod
    def of(cls, paths: Iterable[str]) -> "Study":
        """The study that all these records belong to; none if they are of several."""
        files = {_nearest(folder) for folder in {Path(path).resolve().parent for path in paths}}
        file = files.pop() if len(files) == 1 else None
        if file is None:
            return cls()
        try:
            content: Any = tomllib.loads(file.read_text(encoding="utf-8"))
            lists = {name: content.get(name, []) for name in ("methods", "allow")}
            if wrong := [name for name, value in lists.items() if not isinstance(value, list)]:
                raise TypeError(f"{wrong[0]} is no list of words")
            return cls(**content | {name: tuple(words) for name, words in lists.items()})
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise DataError(f'{file} is no study: {error}. It may hold "why", "methods" and "allow".') from None

    def names(self, frame: pd.DataFrame, otherwise: Iterable[str]) -> list[str]:
        held = frame.reindex(columns=pd.Index(self.methods)).to_dict("records")
        found = (" ".join(map(shown, (v for v in row.values() if pd.notna(v)))) for row in held)
        return [name or other for name, other in zip(found, otherwise, strict=True)]


def _nearest(folder: Path) -> Path | None:
    return next((file for above in (folder, *folder.parents[:3]) if (file := above / STUDY).is_file()), None)


def check_allowed(words: Sequence[str]) -> None:
    for word in words:
        one_of("allow", word, ALLOWED)


def refuse(broken: Broken, allowed: Sequence[str]) -> None:
    refused = [(word, line) for c, line in broken if (word := WORDS.get(c, c)) not in allowed]
    if refused:
        words = ", ".join(repr(word) for word in dict.fromkeys([*allowed, *(word for word, _ in refused)]))
        raise ConfigError(
            f"these runs do not compare: {'; '.join(line for _, line in refused)}. Choose runs that agree, or pass "
            f"allow=[{words}] to see them side by side all the same."
        )


def differences(frame: pd.DataFrame) -> Broken:
    """What rules out a comparison, with examples."""
    found = [
        (column, f"the {_said(column)} differs ({_examples(frame, column)})")
        for column in IN_ALL
        if len(set(map(shown, frame[column]))) > 1
    ]
    for column in IN_PAIR:
        kept = frame if column == "teacher" else frame.dropna(subset=[column])
        groups = kept.groupby(["pair", "form"] if column == "new_weights" else "pair", sort=False)
        of = next((of for _, of in groups if len(set(map(shown, of[column]))) > 1), None)
        if of is not None:
            found.append((column, f"the {_said(column)} differs at {of['pair'].iloc[0]} ({_examples(of, column)})"))
    return found


def unpaired(frame: Any, common: bool) -> tuple[pd.DataFrame, Broken]:
    """Refuse methods with other seeds; with `common`, keep the seeds that all have, if there are any.

    One that missed its target stands at a level of its own, and is not missed here.
    """
    seeds = {method: set(of["pair"]) for method, of in frame.groupby("method", sort=False)}
    shared, every = set.intersection(*seeds.values()), set().union(*seeds.values())
    problems = [
        f"{method} lacks {', '.join(sorted(every - own))}, which others have"
        for method, own in seeds.items()
        if own != every
    ]
    missed = set(frame.loc[frame["status"] != "done", ["method", "pair"]].itertuples(index=False, name=None))
    for level, here in frame.groupby("level"):
        there = {method: set(of["pair"]) for method, of in here.groupby("method", sort=False)}
        here_or_there = set().union(*there.values()) & shared
        for method, own in there.items():
            if lacking := sorted(p for p in here_or_there - own if (method, p) not in missed):
                problems.append(f"{method} lacks {', '.join(lacking)} at {percent(level)}, which others have there")
    if common and problems and shared:
        frame = frame[frame["pair"].isin(shared)]
        for _, here in frame.groupby("level"):
            own = [set(of["pair"]) for _, of in here.groupby("method")]
            frame = frame.drop(here.index[~here["pair"].isin(set.intersection(*own))])
    return frame, [("seeds", line) for line in problems]


def check_columns(frame: pd.DataFrame, needed: Iterable[str]) -> None:
    if missing := [column for column in dict.fromkeys(needed) if column not in frame]:
        more = " and others" if len(missing) > 8 else ""
        raise ConfigError(
            f"this table lacks {', '.join(missing[:8])}{more}; it has {', '.join(map(str, frame.columns))}. Read the "
            "records with lab.results.load."
        )


def check_possible(frame: Any, score: str, sparsity: str) -> None:
    """Refuse what no run can have measured. A run that diverged may have no number."""
    shares = frame["metric"].isin(["accuracy", "whole"])
    for column in dict.fromkeys([score, sparsity, "test_accuracy", "val_accuracy", "test_top5"]):
        values: Any = pd.to_numeric(frame[column], errors="coerce")
        may_lack = (frame["status"] == "diverged") if column in (score, sparsity) else True
        bounded = shares if column.endswith("accuracy") else column in (sparsity, "test_top5")
        wrong = np.where(values.isna(), ~np.bool_(may_lack), np.isinf(values) | (bounded & ~values.between(0, 1)))
        for row in frame[wrong.astype(bool)].head(1).to_dict("records"):
            where = row.get("path") or f"the run {row['methods']} of seed {row['seed']}"
            raise ConfigError(f"{where} has {column} {row[column]}, which cannot be; leave it out, or run it again.")


def check_copies(frame: Any) -> None:
    """Refuse one run under several seeds: no two trainings have the same losses, or end with the same weights."""
    for column in ("end_hash", "trace_hash"):
        known = frame[frame["status"] != "diverged"].dropna(subset=[column])
        for _, of in known.groupby(column, sort=False):
            if len(pairs := list(dict.fromkeys(of["pair"]))) > 1:
                raise ConfigError(
                    f"{' and '.join(pairs)} of {of['method'].iloc[0]} are one run under several "
                    "seeds: their results are the same to the last digit. Leave the copies out; they count once."
                )


def same_runs(frame: Any) -> list[str]:
    """Methods that are one run, by its losses and by its weights where these are known."""
    found: dict[tuple[str, ...], str] = {}
    for _, of in frame.groupby(["trace_hash", frame["end_hash"].fillna("")], sort=False):
        if len(methods := tuple(dict.fromkeys(of["method"]))) > 1:
            found.setdefault(methods, of["pair"].iloc[0])
    return [f"{' and '.join(methods)} are one and the same run at {pair}." for methods, pair in found.items()]


def ends_of_recipes(frame: Any, stages: bool) -> tuple[pd.DataFrame, list[str]]:
    """Of what recipes trained, only the ends: not what a later stage began with, nor what was not chosen.

    The dense net of a recipe is its first stage; a network without channels that is trained anew is none.
    """
    if "recipe" not in frame:
        return frame, []
    made = frame["recipe"].notna()
    frame = frame.assign(control=frame["control"].mask(made & (frame["stage"] != "dense"), ""))
    begun = set(frame.loc[made & (frame["start_hash"] != frame["end_hash"]), "start_hash"])
    passed = made & frame["end_hash"].isin(begun) & (not stages)
    tried = made & ~passed & frame.get("chosen", pd.Series(index=frame.index)).eq(False) & (not stages)
    said = {"stages that a recipe went on from": passed, "trials that a recipe did not choose": tried}
    notes = [f"{rows.sum()} records are {what}, and are not compared." for what, rows in said.items() if rows.any()]
    return frame[~(passed | tried)], notes


def named_by_stage(frame: Any) -> pd.DataFrame:
    """Where a recipe has several results of one seed and sparsity, the stage becomes part of the method's name."""
    if "recipe" not in frame:
        return frame
    several = frame.groupby(["method", "pair", "level"])["stage"].transform("nunique") > 1
    apart = frame["recipe"].notna() & frame["method"].isin(frame.loc[several, "method"])
    return frame.assign(method=frame["method"].mask(apart, frame["method"] + ": " + frame["stage"].astype(str)))


def named_apart(frame: Any, columns: Iterable[str]) -> pd.DataFrame:
    """Where a method has several runs of one seed and sparsity, what was allowed to differ becomes part of its name."""
    for column in columns:
        values = frame[column].map(shown)
        several = values.groupby([frame[key] for key in ("method", "pair", "level")]).transform("nunique") > 1
        apart = frame["method"].isin(frame.loc[several, "method"])
        frame = frame.assign(method=frame["method"].mask(apart, frame["method"] + f", {heading(column)} " + values))
    return frame


def heading(column: str) -> str:
    return WORDS.get(column, column).replace("_", " ")


def shown(value: Any) -> str:
    """A value of a column in a sentence, alike for equal values."""
    if value is None or value != value:
        return "none"
    return f"{value:,.12g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def percent(sparsity: float) -> str:
    return f"{100 * sparsity:.4g} % zeros"


def _said(column: str) -> str:
    return SAID.get(column, column.replace("_", " "))


def _examples(frame: pd.DataFrame, column: str) -> str:
    """`195 of dense; 65 of OneShot`."""
    groups = frame.groupby(frame[column].map(shown), sort=False)["method"].unique()
    lines = [f"{value} of {', '.join(methods[:3])}" for value, methods in groups.items()]
    return "; ".join(lines[:4]) + (" and others" if len(lines) > 4 else "")
