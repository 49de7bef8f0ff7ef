"""`pruninglab COMMAND`, also `python -m pruninglab COMMAND`: what a terminal needs; the rest is notebooks."""

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

from .console.completion import SHELLS, script
from .errors import ConfigError, DataError, RunError
from .version import __version__

CLONE = Path(__file__).parent.parent / "notebooks"


def demo(out: Path) -> None:
    """Run the first notebook headless; leave it executed, as a page, and as records; print its table."""
    from .results import tables
    from .sweep import headless

    source = _notebook("00_start.ipynb")
    out.mkdir(parents=True, exist_ok=True)
    executed, page = out / source.name, out / "00_start.html"
    print(f"Running {source.name}: five ways to prune LeNet-5 on real 8x8 digits, about half a minute on two cores.")
    headless.execute(source, executed, {"out": str(out.resolve())}, folder=source.parent, limit=1800)
    _write_page(executed, page)
    print(f"\n{tables.compare_text(tables.load(out))}\n")
    print(f"Executed notebook: {executed}\nPage to open in a browser: {page}")
    print(f"Open it in JupyterLab with: {'make lab' if source.parent == CLONE else f'jupyter lab {executed}'}")


def report(folder: Path, out: Path, by: str) -> None:
    """Compare the records of a folder in the notebook made for it, as one HTML file."""
    from tempfile import TemporaryDirectory

    from .results import tables
    from .sweep import headless

    source = _notebook("15_compare.ipynb")
    if tables.load(folder).empty:
        raise DataError(f"no records found in {folder}; give a folder that a sweep or `record=` has written.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as work:
        executed = Path(work) / source.name
        parameters = {"folder": str(folder.resolve()), "by": by}
        headless.execute(source, executed, parameters, folder=source.parent, limit=1800)
        _write_page(executed, out, exclude_input=True)
    print(f"Page to open in a browser: {out}")


def _notebook(name: str) -> Path:
    places = [CLONE / name, Path(__file__).parent / "notebooks" / name]  # the second is that of an installed wheel
    source = next((place for place in places if place.exists()), None)
    if source is None:
        raise ConfigError(f"{name} is not part of this installation; run this in a clone of the repository.")
    return source


def _write_page(executed: Path, page: Path, **settings: Any) -> None:
    import nbformat
    from nbconvert import HTMLExporter

    content = HTMLExporter(embed_images=True, **settings).from_notebook_node(nbformat.read(executed, 4))[0]
    page.write_text(content, encoding="utf-8")


def sweep(given: argparse.Namespace) -> int:
    """Run a grid; 0 if every cell is done, 1 if some failed or are missing."""
    from .sweep.parameters import read_grid
    from .sweep.plan import plan
    from .sweep.sequential import until_width

    values = read_grid(given.grid) if given.grid else {}
    for assignment in given.p:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"-p {assignment} sets nothing; write -p name=value,value or -p seed=0:3.")
        values[name.strip()] = text
    if given.until_width is not None and not given.dry_run:
        seeds = {"width": given.until_width, "most": given.most_seeds}
        return _ended(until_width(given.notebook, values, given.out, **seeds, **_how(given)))
    planned = plan(given.notebook, values, given.out)
    if given.jobs is not None and given.jobs < 1:
        raise ConfigError(f"--jobs {given.jobs} runs nothing; expected at least 1.")
    if given.dry_run:
        found = planned.records()
        for name in planned.cells:
            print(f"{found[name]['status'] if name in found else 'to run':<8}{name}")
        jobs = given.jobs or 1 if given.scheduler else _jobs(given.jobs, given.threads)
        print(f"{len(planned.cells)} cells in {planned.out}: {planned.estimate(jobs)}")
        return 0
    return _ended(planned.run(**_how(given)))


def _how(given: argparse.Namespace) -> dict[str, Any]:
    names = ("jobs", "threads", "scheduler", "cell_limit", "limit", "retry_failed")
    return {name: getattr(given, name) for name in names} | {"resources": dict(given.resources)}


def _ended(planned: Any) -> int:
    print(f"\n{planned}\n\nTable with pictures: {planned.out / 'index.html'}")
    if planned.missing:
        print("Some cells are missing; the same command goes on with them.")
    if planned.failed:
        print("Some cells failed; --retry-failed runs them again.")
    return 1 if planned.failed or planned.missing else 0


def _jobs(jobs: int | None, threads: int) -> int:
    from dask.system import CPU_COUNT

    return jobs or max(CPU_COUNT // threads, 1)


def _seconds(text: str) -> float:
    """`90`, `90s`, `10m` or `2h`."""
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not parts or not float(parts.group(1)):
        raise argparse.ArgumentTypeError(f"{text!r} is no time; expected 90, 90s, 10m or 2h")
    return float(parts.group(1)) * {"": 1, "s": 1, "m": 60, "h": 3600}[parts.group(2)]


def _resource(text: str) -> tuple[str, float]:
    """`GPU=1`."""
    name, _, amount = text.partition("=")
    try:
        return name, float(amount)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no resource; expected GPU=1") from None


def data() -> None:
    """Which data sets there are, and which of them can be loaded now."""
    from .data.loading import available

    for name, about, here in available():
        print(f"{name:<14}{'ready' if here else 'files needed':<14}{about}")


def show(pattern: str, csv: Path | None) -> None:
    """All records that a pattern finds, as a table or as CSV."""
    from .results import tables

    frame = tables.load(pattern)
    for kind, said in (("skipped", "left out"), ("failed", "failed cell")):
        for name, why in frame.attrs[kind].items():
            print(f"{said}: {name}: {why}", file=sys.stderr)
    if frame.empty:
        raise DataError(f"no records found by {pattern!r}; give a folder, a file or a pattern such as 'runs/**'.")
    if csv:
        frame.to_csv(csv, index=False)
    else:
        print(tables.compare_text(frame))


def measure(given: argparse.Namespace) -> int:
    """Train the rows of a table, or list them; 0 if every row has its record."""
    from .benchmark import TABLES, describe_table, estimate, run_table
    from .benchmark.runner import home

    if not given.table:
        for name in TABLES:
            print(describe_table(name))
        return 0
    print(describe_table(given.table, given.rows), flush=True)
    for folder in ("out", "work"):
        default = Path("runs", "papers" if folder == "out" else "papers-work", home(given.table))
        setattr(given, folder, getattr(given, folder) or default)
    options = {"precision": given.precision} if given.precision else {}
    options |= {"only": given.rows, "data": given.data}
    if given.estimate:
        print(estimate(given.table, **options))
        return 0
    if given.jobs or given.scheduler:
        return _on_workers(given)
    options |= {"weights": given.weights, "budget": given.budget, "protocol": given.protocol}
    for seed, name, result in run_table(given.table, given.seeds, given.out, given.work, **options):
        print(f"seed {seed}  {name:<22}{result.status:<15}val {result.val:.2%}  test {result.test:.2%}  "
              f"{result.size['nonzero']:,} parameters left", flush=True)  # fmt: skip
    return 0


def _on_workers(given: argparse.Namespace) -> int:
    from .sweep.papers import run_rows

    paths = ("weights", "out", "work")
    told = {name: Path(value).absolute() for name in paths if (value := getattr(given, name))}
    told |= {name: value for name in ("precision", "data", "budget", "protocol") if (value := getattr(given, name))}
    arguments = [f"--{name}={value}" for name, value in told.items()]
    where = {"only": given.rows, "jobs": given.jobs, "scheduler": given.scheduler}
    failed = run_rows(given.table, given.seeds, told["out"], arguments, **where)
    return int(bool(failed))


def check(folder: Path) -> int:
    """Measure the networks of a folder again; 1 if one differs from its record or is damaged."""
    from .benchmark.verify import in_words, verify

    found = verify(folder)
    print(*in_words(found), sep="\n")
    return int(bool({"differs", "damaged"} & set(found["verdict"])))


def export_c(network: Path, out: Path, bits: int | None) -> None:
    """Write a network that lies beside its record as one C file."""
    from .benchmark.verify import recorded_network
    from .deploy import export_c as written

    model, data = recorded_network(network)
    made = written(model, out, data, bits=bits)
    print(f"{made}\nA program that reads a file of images: cc -O3 -std=c99 -DDRIVER {out} -o {out.with_suffix('')}")


def _add_measure(commands: Any) -> None:
    add = commands.add_parser("papers", help="train the rows of a paper's table, each by its own method").add_argument
    add("table", nargs="?", default="", help="without one, all tables are listed")
    add("--rows", nargs="+", default=[], metavar="ROW", help="some of the rows (default: all)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], metavar="N")
    add("--precision", choices=("fp32", "bf16"), help="bf16 is faster where the processor has it")
    add("--budget", choices=("full", "quick"), default="full", help="quick takes a third of the epochs")
    add("--protocol", choices=("holdout", "paper"), default="holdout", help="paper chooses on the test images")
    add(
        "--jobs",
        type=int,
        metavar="N",
        help="rows at a time, each in a process of one thread",
    )
    add("--scheduler", metavar="ADDRESS", help="a running Dask cluster, tcp://host:8786, whose workers see the folders")
    add("--data", default="", metavar="folder:PATH", help="the images of a table of ImageNet")
    add("--weights", type=Path, metavar="FILE", help="the dense network that a table of ImageNet starts from")
    add("--estimate", action="store_true", help="train a few steps, and say how long a seed takes here")
    add("--out", type=Path, help="folder for the records (default: runs/papers/TABLE)")
    add("--work", type=Path, help="folder for the checkpoints to go on from (default: runs/papers-work/TABLE)")


def _add_sweep(commands: Any) -> None:
    add = commands.add_parser("sweep", help="run a notebook for every combination of parameters").add_argument
    add("notebook", type=Path)
    add(
        "-p", action="append", default=[], metavar="NAME=VALUES", help="density=0.1,0.05 or seed=0:3; repeat for a grid"
    )
    add("--grid", type=Path, metavar="FILE", help="parameters and values in a TOML or YAML file; -p goes before it")
    add("--out", type=Path, required=True, help="folder of the sweep; what is finished there is not run again")
    add("--jobs", type=int, metavar="N", help="cells at a time (default: one for each core)")
    add("--threads", type=int, default=1, metavar="N", help="threads of each cell (default: 1)")
    add("--scheduler", metavar="ADDRESS", help="a running Dask cluster, tcp://host:8786, instead of one made here")
    add("--resources", type=_resource, nargs="+", default=[], metavar="NAME=N", help="what each cell takes: GPU=1")
    add("--cell-limit", type=_seconds, metavar="TIME", help="kill a cell after 90s, 10m or 2h: it has failed")
    add("--limit", type=_seconds, metavar="TIME", help="kill what still runs after that; the same command goes on")
    add("--until-width", type=float, metavar="W", help="add seeds until no 95 %% interval of a mean is wider than W")
    add("--most-seeds", type=int, default=20, metavar="N", help="end there in any case (default: 20)")
    add("--retry-failed", action="store_true", help="run cells again that have failed")
    add("--dry-run", action="store_true", help="list the cells and how long they may take")


def run(given: argparse.Namespace) -> None:
    """Run one notebook or script; under torchrun in several processes that train together."""
    from .console.run_file import run_file

    if executed := run_file(given.file, given.settings, given.out):
        print(f"Executed notebook: {executed}")


def new(name: str, folder: Path) -> None:
    """Write a notebook with the six sections of the course, ready to run."""
    from .console.template import write_notebook

    path = write_notebook(name, folder)
    print(f"{path}\nOpen it with: jupyter lab {path}\nRun it with: papermill {path} out.ipynb -p sparsity 0.98")


EXITS = """\
exit codes:
  0    done
  1    a cell of a sweep failed or is missing, or a network differs from its record
  2    wrong arguments, files or settings; the message says what to do
  130  interrupted; the same command goes on from what is finished
"""
EXAMPLES = {
    "": "examples:\n  pruninglab demo\n  pruninglab new my_study\n  pruninglab results runs\n",
    "demo": "example:\n  pruninglab demo --out runs/demo\n",
    "data": "example:\n  PRUNINGLAB_DATA=~/data pruninglab data\n",
    "results": "examples:\n  pruninglab results runs\n  pruninglab results 'runs/**' --csv all.csv\n",
    "report": "example:\n  pruninglab report runs/grid --out report.html --by param_method\n",
    "sweep": "examples:\n  pruninglab sweep study.ipynb -p density=0.1,0.05 -p seed=0:3 --out runs/grid --dry-run\n"
    "  pruninglab sweep study.ipynb --grid grid.toml --out runs/grid --cell-limit 10m --retry-failed\n",
    "papers": "examples:\n  pruninglab papers\n  pruninglab papers MNIST --seeds 0 1 2\n",
    "verify": "example:\n  pruninglab verify runs/papers\n",
    "export-c": "example:\n  pruninglab export-c runs/papers/MNIST/seed-0/relevance.sparse net.c --bits 4\n",
    "run": "examples:\n  pruninglab run study.ipynb sparsity=0.95 --out runs/study.ipynb\n"
    "  torchrun --nproc-per-node=2 -m pruninglab run study.ipynb\n",
    "new": "example:\n  pruninglab new my_study --folder notebooks\n",
    "completion": "examples:\n  source <(pruninglab completion bash)\n"
    "  pruninglab completion fish > ~/.config/fish/completions/pruninglab.fish\n",
}
"""What one would type, below the help of each command."""


def parser_of() -> argparse.ArgumentParser:
    raw: Any = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    about = "Prune neural networks, and get numbers that can be trusted. The rest is notebooks; `new` writes one."
    parser = argparse.ArgumentParser("pruninglab", description=about, epilog=EXAMPLES[""] + "\n" + EXITS, **raw)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser("demo", help="run the first notebook headless")
    command.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for notebook, page and records")
    command = commands.add_parser("new", help="write a notebook to begin a study with")
    command.add_argument("name", help="of the study, such as my_study")
    command.add_argument("--folder", type=Path, default=Path(), help="where to write it (default: here)")
    command = commands.add_parser("run", help="run one notebook or script; under torchrun on several devices")
    command.add_argument("file", type=Path, help="a notebook or a script")
    command.add_argument("settings", nargs="*", help="parameters of the notebook, name=value; arguments of the script")
    command.add_argument("--out", type=Path, help="the executed notebook (default: in runs, under its own name)")
    commands.add_parser("data", help="list the data sets and where they stand")
    command = commands.add_parser("results", help="print records as a table")
    command.add_argument("pattern", help="a folder, a file, or a pattern such as 'runs/**'")
    command.add_argument("--csv", type=Path, help="write all columns to this file instead")
    command = commands.add_parser("report", help="compare the records of a folder, as one HTML file")
    command.add_argument("folder", type=Path)
    command.add_argument("--out", type=Path, default=Path("report.html"))
    command.add_argument("--by", default="", help="column that names the methods, such as param_method")
    _add_sweep(commands)
    _add_measure(commands)
    command = commands.add_parser("verify", help="measure networks that lie beside their records again")
    command.add_argument("folder", type=Path)
    command = commands.add_parser("export-c", help="write a network that lies beside its record as one C file")
    command.add_argument("network", type=Path, help="the sparse file, beside its record")
    command.add_argument("out", type=Path, help="the C file")
    command.add_argument("--bits", type=int, choices=range(2, 9), help="of each weight (default: floats of 32)")
    command = commands.add_parser("completion", help="print what lets a shell complete commands and options")
    command.add_argument("shell", choices=SHELLS)
    for name, command in commands.choices.items():
        command.formatter_class, command.epilog = raw["formatter_class"], EXAMPLES[name]
    return parser


def do(given: argparse.Namespace) -> int:
    """The command that was given, and its exit code."""
    match given.command:
        case "demo":
            demo(given.out)
        case "run":
            run(given)
        case "new":
            new(given.name, given.folder)
        case "data":
            data()
        case "results":
            show(given.pattern, given.csv)
        case "report":
            report(given.folder, given.out, given.by)
        case "sweep":
            return sweep(given)
        case "papers":
            return measure(given)
        case "verify":
            return check(given.folder)
        case "export-c":
            export_c(given.network, given.out, given.bits)
        case "completion":
            print(script(parser_of(), given.shell), end="")
    return 0


def main(arguments: list[str] | None = None) -> int:
    try:
        return do(parser_of().parse_args(arguments))
    except KeyboardInterrupt:
        _say("interrupted; the same command goes on from what is finished")
        return 130
    except ModuleNotFoundError as error:
        if not (extra := NEEDED.get((error.name or "").partition(".")[0])):
            raise
        _say(f"this needs {error.name}, which is not installed: pip install 'pruninglab[{extra}]'.")
    except (ConfigError, DataError, RunError) as error:
        _say(str(error))
    return 2


NEEDED: dict[Any, str] = dict.fromkeys(
    ("papermill", "nbclient", "nbconvert", "nbformat", "ipykernel", "IPython"), "lab"
)
NEEDED |= dict.fromkeys(("dask", "distributed", "bokeh", "psutil", "yaml"), "sweep")


def _say(problem: str) -> None:
    """One line on the error stream, in red where that is a terminal."""
    red = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    print(f"\033[31mpruninglab: {problem}\033[0m" if red else f"pruninglab: {problem}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
