"""Methods, compared as fairly as their records can prove, with what chance alone could do.

    lab.compare("runs/**")          a folder, loaded records, or runs

Runs are refused if their protocol differs: data, split, augmentation, loss, optimizer and its settings, precision,
scope, total steps and the like. They are also refused if their initial weights, their dense start or their seeds
differ. `allow` accepts a difference and shows it in a column. Runs of one seed are pairs: they share all that the seed
decides. Differences are tested within pairs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import _html
from ..errors import ConfigError
from ..results.record import Result
from ..results.tables import load
from ..train.run import Run
from ..typed import checked, one_of
from . import fairness, papers
from .statistics import crossing, holm, interval, levels_of, paired, smallest

CONTROLS = ("dense", "random mask", "layer magnitude", "global magnitude")
_DECIDED = [column for column in fairness.IN_PAIR if column != "new_weights"]
_USED = """
    method control method_settings methods settings seed init_seed start start_hash end_hash trace_hash status holds
    test_images test_accuracy val_accuracy test_top5 collapsed_layers epochs processor search_steps
    flops_before flops_training flops_dense flops_sparse sparse_bytes seconds
""".split()


@dataclass(frozen=True, repr=False)
class Comparison:
    """Runs that may stand in one table. Showing it is that table, the tests, and what is missing."""

    runs: pd.DataFrame
    """One row a run: the record's columns, and `method`, `pair` and `level`, the sparsity that it is compared at."""
    score: str
    counted: str
    notes: tuple[str, ...] = ()
    differing: tuple[str, ...] = ()
    """Columns of the protocol in which these runs differ, as was asked for."""

    @cached_property
    def levels(self) -> list[float]:
        """The sparsities compared, without 0."""
        return sorted({float(level) for level in self.runs["level"]} - {0.0})

    @cached_property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(self.runs["method"]))

    @cached_property
    def controls(self) -> dict[str, str | None]:
        """Each control, and the way that is it, or None where it is missing."""
        held = self.runs.groupby("control", sort=False)["method"].first()
        return {name: held.get(name) for name in CONTROLS}

    def table(self) -> pd.DataFrame:
        """One row for each method at each level: n, mean and 95 % interval of the accuracy, what was reached, its cost.

        Training FLOPs are those of a dense computation, of all that was trained before included; seconds are of the run
        alone. What was allowed to differ are the last columns.
        """
        rows = []
        groups: Any = self.runs.groupby(["level", "method"], sort=False)
        for (level, method), of in groups:
            low, mean, high = interval(of[self.score].to_numpy(float), _coin(of))
            statuses = of["status"].value_counts()
            rows.append(
                {
                    "sparsity": float(of[f"sparsity_{self.counted}"].mean()),
                    "level": level,
                    "method": method,
                    "n": len(of),
                    "accuracy": mean,
                    "low": low,
                    "high": high,
                    "status": ", ".join(f"{n} {s}" if len(statuses) > 1 else str(s) for s, n in statuses.items()),
                    "emptied_layers": int(of["collapsed_layers"].max()),
                    "start": " and ".join(sorted(set(of["start"]))),
                    "flops_left": float((of["flops_sparse"] / of["flops_dense"]).mean()),
                    "sparse_bytes": float(of["sparse_bytes"].astype(float).mean()),
                    "training_gflops": 1e-9 * float(_training_flops(of).mean()),
                    "seconds": float(of["seconds"].astype(float).mean()),
                    **{column: _values(of, column) for column in self.differing},
                }
            )
        order = {method: i for i, method in enumerate(self.methods)}
        return pd.DataFrame(rows).sort_values(
            ["level", "method"], key=lambda c: c.map(order) if c.name == "method" else c, ignore_index=True
        )

    def tests(self, against: str | None = None, level: float = 0.05) -> pd.DataFrame:
        """Differences within pairs at each sparsity, tested: `difference` is method minus against, with its interval.

        `against` is a method, "all" for every pair of methods, or None for the strongest plain control that is there.
        The dense net, which is cut nowhere, stands at every sparsity. Paired t-test, two-sided; `adjusted` is Holm's p
        over the whole table. `effect` is the mean difference in its own standard deviations, corrected for few pairs
        (Hedges' g). Accuracy is counted in whole images: each difference has one more image a side that a coin decides.
        `smallest` is the difference that so many pairs, spread like this, show in four of five studies, at the level
        that Holm's correction left for this test.
        """
        against = against or next((c for c in reversed(list(self.controls.values())) if c), self.methods[0])
        one_of("against", against, (*self.methods, "all"))
        rows = []
        runs: Any = self.runs
        for at in self.levels or [0.0]:
            here = runs[(runs["level"] == at) | (runs["control"] == "dense")].drop_duplicates(
                ["method", "data", "pair"]
            )
            scores = here.pivot_table(self.score, ["data", "pair"], "method", sort=False, dropna=False)
            pairs = combinations([method for method in self.methods if method in scores], 2)
            for first, second in (pair for pair in pairs if against == "all" or against in pair):
                method, other = (first, second) if second == against or against == "all" else (second, first)
                differences = (scores[method] - scores[other]).dropna().to_numpy(float)
                if len(differences):
                    named = {"level": at, "method": method, "against": other}
                    rows.append(named | paired(differences, 2 * _coin(here), level))
        found = pd.DataFrame(rows, columns=pd.Index(_TESTED))
        found["adjusted"] = holm(found["p"].fillna(1.0).to_numpy()) if len(found) else found["p"]
        found["smallest"] = _smallest(found, level)
        found["verdict"] = [_verdict(row, level) for row in found.to_dict("records")]
        return found

    def at_accuracy(self, wanted: float | None = None) -> pd.DataFrame:
        """How much each method can cut and keep `wanted` (by default a point below the dense net, or the best mean).

        For each seed the sparsest level that keeps it, and from there along the line to the next, density on a
        logarithmic scale. Where a seed keeps it at no level, or still at the sparsest, no mean can be given.
        """
        if wanted is None:
            table: Any = self.table()
            best = table.loc[table["method"] == self.controls["dense"], "accuracy"]
            wanted = float(best.iloc[0] if len(best) else table["accuracy"].max()) - 0.01
        rows = []
        groups: Any = self.runs[self.runs["level"] > 0].groupby("method", sort=False)
        for method, of in groups:
            found = [crossing(p["level"].to_numpy(), p[self.score].to_numpy(), wanted) for _, p in of.groupby("pair")]
            kept, ended = sum(f is not None for f in found), sum(f == 1 for f in found)
            sparsities = np.array([f for f in found if f is not None and f < 1])
            density = np.log(1 - sparsities) if len(sparsities) == len(found) else np.array([np.nan])
            low, mean, high = (1 - np.exp(edge) for edge in reversed(interval(density)))
            said = [f"at no level with {len(found) - kept} of {len(found)} seeds"] if kept < len(found) else []
            said += [f"beyond {of['level'].max():.2%} with {ended} of {len(found)} seeds"] if ended else []
            row = {"method": method, "n": len(found), "accuracy": wanted, "sparsity": mean, "low": low, "high": high}
            rows.append(row | {"times": 1 / (1 - mean), "said": "; ".join(said)})
        return pd.DataFrame(rows)

    def published(self, data: str | None = None, model: str | None = None) -> pd.DataFrame:
        """The printed rows of this data and model, or of those that are given: "ImageNet" for a folder, say."""
        return papers.published(data or " and ".join(dict.fromkeys(self.runs["holds"])), model or self.task[1])

    def beside_papers(self, data: str | None = None, model: str | None = None) -> pd.DataFrame:
        """Each row of `published`, and beside it the methods with that density, give or take a tenth.

        Density is counted as the paper does, and the metric is the paper's. What is published has no n and no interval.
        """
        rows = []
        runs: Any = self.runs
        printed = self.published(data, model).drop(columns=["data", "model"])
        for row in printed.rename(columns={"method": "published"}).to_dict("records"):
            score = "test_top5" if row["metric"] == "top-5" else "test_accuracy"
            density = 1 - runs[f"sparsity_{row['counted']}"]
            near = runs[(density / (1 - row["sparsity"]) - 1).abs() < 0.1].assign(density=density)
            found = [
                {
                    "method": method,
                    "measured": of[score].astype(float).mean(),
                    "at": 1 - of["density"].mean(),
                    "n": len(of),
                }
                for (_, method), of in near.groupby(["level", "method"], sort=False)
            ]
            rows += [row | mine for mine in found or [{"method": "", "measured": np.nan, "at": np.nan, "n": 0}]]
        return pd.DataFrame(rows)

    def words(self, against: str | None = None) -> list[str]:
        """What may be said, one sentence for each test, then what is missing and what else differs."""
        tests = self.tests(against)
        said = [
            f"At {fairness.percent(row['level'])}, {row['method']} {row['verdict']}" for row in tests.to_dict("records")
        ]
        missing = [name for name, method in self.controls.items() if method is None]
        if missing:
            said.append(f"Controls that are missing: {', '.join(missing)}.")
        return [*said, *self.notes]

    def __repr__(self) -> str:
        lines = [self._head(), *self._shown()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = ["  ".join(f"{cell:{w}}" for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join([self._title(), *text, *(f"- {line}" for line in self.words())])

    def _repr_html_(self) -> str:
        said = "".join(f"<li>{_html.cell(line)}</li>" for line in self.words())
        return _html.table(self._head(), self._shown(), self._title()) + f"<ul>{said}</ul>"

    @property
    def task(self) -> tuple[str, str]:
        """Data and model; of several, where that was allowed, no paper has a row."""
        data, model = (" and ".join(dict.fromkeys(self.runs[c])) for c in ("data", "model"))
        return data, model

    def _title(self) -> str:
        data, model = self.task
        steps = sorted({int(s) for s in self.runs["total_steps"]})
        budget = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
        return f"{model} on {data}, {self.score.replace('_', ' ')}, {budget} steps in all"

    def _head(self) -> tuple[str, ...]:
        return (*_HEAD, *map(fairness.heading, self.differing))

    def _shown(self) -> list[tuple[str, ...]]:
        rows = []
        for row in self.table().to_dict("records"):
            bounds = f"{row['low']:.2%} to {row['high']:.2%}" if row["n"] > 1 else "one run"
            status = row["status"] + (f", {row['emptied_layers']} layers emptied" if row["emptied_layers"] else "")
            scores = (f"{row['sparsity']:.2%}", str(row["n"]), f"{row['accuracy']:.2%}", bounds, status, row["start"])
            counts = (f"{row['flops_left']:.1%}", f"{row['sparse_bytes'] / 1000:,.1f}")
            costs = (f"{row['training_gflops']:,.0f}", f"{row['seconds']:,.1f}")
            rows.append((row["method"], *scores, *counts, *costs, *(row[column] for column in self.differing)))
        return rows


_HEAD = (
    *("method", "zeros", "n", "accuracy", "95 % interval", "status", "start"),
    *("FLOPs left", "KB", "training GFLOPs", "seconds of it"),
)
_TESTED = ("level", "method", "against", "n", "difference", "low", "high", "p", "effect", "deviation")


@checked
def compare(
    results: str | Path | pd.DataFrame | Iterable[Run | Result],
    by: str | None = None,
    *,
    score: str = "test_accuracy",
    counted: str = "weights",
    allow: str | Sequence[str] = (),
) -> Comparison:
    """Runs side by side if that is fair. Otherwise a ConfigError says which runs differ, and in what.

    `by` is the column that names the methods. Without it, runs with the same method and settings form one group,
    whatever their sparsity. `counted` says what sparsity counts: "weights", "weights_and_biases" or "all". `allow`
    lists what may differ anyway, such as `allow="lr"`; a refusal names the word. The comparison then says so and shows
    it in a column. If that difference alone gives a method several runs of one seed, it becomes part of the method's
    name. With "seeds" the comparison uses only seeds that all methods have. If there is none, each two methods are
    compared by those that both have.

    The folder of a recipe holds a record of each training. Two kinds are left out: those that a later training
    continues, and trials that the recipe did not choose. `allow="steps"` or `by="stage"` includes them.

    Records of a study may lie under a file `study.toml`. It says what differs there on purpose, and why.
    """
    frame: Any = _frame(results)
    study = fairness.Study.of(frame["path"].dropna()) if "path" in frame else fairness.Study()
    allowed = [*([allow] if isinstance(allow, str) else allow), *study.allow]
    fairness.check_allowed(allowed)
    sparsity = f"sparsity_{counted}"
    named = [by] if by else []
    fairness.check_columns(frame, [*_USED, *fairness.IN_ALL, *_DECIDED, score, sparsity, *named])
    fairness.check_possible(frame, score, sparsity)
    frame, passed = fairness.ends_of_recipes(frame, stages="steps" in allowed or by == "stage")
    names = frame[by].astype(str) if by else _short_names(frame)
    frame = frame.assign(
        method=study.names(frame, names) if study.methods and not by else names,
        pair=[_pair(s, i) for s, i in zip(frame["seed"], frame["init_seed"], strict=True)],
        level=levels_of(frame[sparsity]),
        new_weights=frame["start_hash"].where((frame["start"] == "model") & (frame["start_hash"].notna())),
    )
    fairness.check_copies(frame)
    frame = frame if by else fairness.named_by_stage(frame)
    broken = fairness.differences(frame)
    fairness.refuse(broken, allowed)
    differing = [column for column, _ in broken] + [c for c in fairness.SHOWN if len(set(frame[c])) > 1]
    frame, repeated = _without_repeats(fairness.named_apart(frame, differing), score)
    frame, unpaired = fairness.unpaired(frame, "seeds" in allowed)
    fairness.refuse(unpaired, allowed)
    if frame.empty:
        raise ConfigError("no seed is common to all methods, so there is no pair; run them with the same seeds.")
    asked = [f"Not fair, but asked for: {line}." for _, line in broken + unpaired]
    reason = [f"The study says: {study.why}"] if asked and study.why else []
    notes = (*_left_out(frame), *passed, *asked, *reason, *repeated, *_also_different(frame))
    return Comparison(frame.reset_index(drop=True), score, counted, notes, tuple(differing))


def _frame(results: Any) -> pd.DataFrame:
    if isinstance(results, str | Path):
        frame = load(results)
    elif isinstance(results, pd.DataFrame):
        frame = results
    else:
        frame = pd.DataFrame([(r.result if isinstance(r, Run) else r).row() for r in results])
    if frame.empty:
        where = f" in {results}" if isinstance(results, str | Path) else ""
        raise ConfigError(f"there are no records to compare{where}; is the folder right?")
    return frame


def _left_out(frame: pd.DataFrame) -> list[str]:
    """What was found beside the records and is not compared."""
    counts = {"failed": "cells of the sweep failed", "skipped": "files are no records"}
    return [f"{len(frame.attrs[k])} {said}, and are not here." for k, said in counts.items() if frame.attrs.get(k)]


def _pair(seed: Any, init_seed: Any) -> str:
    return f"seed {seed}" if init_seed == seed or pd.isna(init_seed) else f"seed {seed}, initial weights {init_seed:g}"


def _short_names(frame: Any) -> Any:
    """Controls by their own name, a method by its type where this occurs once, else with what differs."""
    names = frame["control"].where(frame["control"] != "", frame["method"])
    for types, of in frame[frame["control"] == ""].groupby("methods", sort=False):
        others = [method for method in dict.fromkeys(of["method"]) if "(" in method]
        short = {m: str(types) if len(others) == 1 else _what_differs(m, others) for m in others}
        names = names.where(~names.index.isin(of.index), of["method"].map(lambda m, short=short: short.get(m, m)))
    return names


def _what_differs(method: str, others: Sequence[str]) -> str:
    """`OneShot(criterion=snip)` of `OneShot(criterion=snip, scope=global)`, if all have that scope."""
    parts = [set(other.replace("(", ", ").replace(")", "").split(", ")) for other in others]
    common = set.intersection(*parts)
    kept = [part for part in method.replace("(", ", ").replace(")", "").split(", ") if part not in common]
    method = method.partition("(")[0] if "(" in method else method
    return f"{method}({', '.join(kept)})" if kept else method


def _without_repeats(frame: pd.DataFrame, score: str) -> tuple[pd.DataFrame, list[str]]:
    """One run for each method, pair and level: equal ones once, others refused."""
    keys = ["method", "pair", "level"]
    once = frame.drop_duplicates([*keys, "settings", "split", "total_steps", "dense_hash", score])
    twice = once[once.duplicated(keys, keep=False)]
    if len(twice):
        method, pair, level = twice.iloc[0][keys]
        of = twice[(twice[keys] == twice.iloc[0][keys]).all(axis=1)]
        columns = ["settings", "total_steps", "split", "dense_hash", "commit", score]
        differ = [c for c in columns if c in of and len(set(of[c].astype(str))) > 1]
        raise ConfigError(
            f"{method} has {len(of)} different runs with {pair} at {fairness.percent(level)}; they differ in "
            f"{', '.join(differ)}. Name the methods by a column that tells them apart (by=), or choose one of them."
        )
    gone = len(frame) - len(once)
    return once, [f"{gone} records repeat another one and count once."] if gone else []


def _also_different(frame: pd.DataFrame) -> list[str]:
    """What the rule does not ask for, and a reader should know."""
    said = {"processor": "hardware", "commit": "version of the code"}
    notes = [f"They differ in {what}." for c, what in said.items() if c in frame and len(set(frame[c].dropna())) > 1]
    named: Any = frame.groupby(["method", "level"], sort=False)["method_settings"]
    for method in dict.fromkeys(method for (method, _), settings in named if len(set(settings)) > 1):
        notes.append(f"{method} has other settings with some seeds than with others.")
    notes += fairness.same_runs(frame)
    kinds = {method: " and ".join(sorted(set(of["start"]))) for method, of in frame.groupby("method", sort=False)}
    if len(set(kinds.values())) > 1:
        begun = ", ".join(f"{method} from a {kind}" for method, kind in kinds.items())
        notes.append(f"They begin differently: {begun}.")
    if len(unknown := dict.fromkeys(frame.loc[frame["search_steps"].isna(), "method"])):
        notes.append(f"What the search for their masks took is not known, and not counted: {', '.join(unknown)}.")
    for status, of in frame[~frame["status"].isin(["done", "stopped"])].groupby("status"):
        notes.append(f"{len(of)} {str(status).replace('_', ' ')}: {', '.join(dict.fromkeys(of['method']))}.")
    return notes


def _training_flops(frame: Any) -> Any:
    """Of all trainings that a run needed; older records do not say what those before it took."""
    batches = pd.to_numeric(frame["batch_size"], errors="coerce")
    known = frame["flops_before"].astype(float) + frame["flops_training"].astype(float)
    return known.fillna(3 * frame["flops_dense"] * batches * frame["total_steps"])


def _values(frame: pd.DataFrame, column: str) -> str:
    """Of what a seed decides, the beginning of each hash is enough."""
    values = dict.fromkeys(map(fairness.shown, frame[column]))
    return " and ".join(value[:8] if column in fairness.IN_PAIR else value for value in values)


def _smallest(tests: Any, level: float) -> list[float]:
    """Holm tests the smallest p at level / m, the next at level / (m - 1) and so on, until one is not below."""
    claimed, place = int((tests["adjusted"] < level).sum()), tests["p"].rank(method="first", na_option="bottom") - 1
    levels = level / (len(tests) - place.clip(upper=claimed))
    pairs = zip(tests["deviation"], tests["n"], levels, strict=True)
    return [smallest(d, n, at) if n > 1 else np.nan for d, n, at in pairs]


def _coin(frame: Any) -> float:
    """Variance of an accuracy with one image that a coin decides."""
    return 0.25 / float(frame["test_images"].min()) ** 2


def _verdict(row: dict[Any, Any], level: float) -> str:
    against, n, points = row["against"], row["n"], 100 * row["difference"]
    if n < 2:
        return f"and {against}: one pair, so nothing can be said."
    if not row["adjusted"] < level:
        least = 100 * row["smallest"]
        return (
            f"is not distinguishable from {against} at n = {n}. The smallest difference that this could show is "
            f"{f'{least:.2g}' if least < 10 else f'{least:.0f}'} points."
        )
    side = "above" if points > 0 else "below"
    return f"is {abs(points):.1f} points {side} {against} (p = {row['adjusted']:.2g} after Holm, n = {n})."
