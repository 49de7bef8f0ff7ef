"""Killed at random moments, every third time on a disk that fails: right at the end, or refused in words."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import pruninglab as lab
from pruninglab import storage

SERVER = """
import errno, json, os, signal, sys, warnings
from pathlib import Path
import torch, torch._dynamo, pruninglab as lab
from pruninglab import storage, sweep

torch.set_num_threads(1)
warnings.simplefilter("ignore")
data = lab.load("digits", train=200, test=60, size=8)
METHODS = (
    lambda: lab.methods.Gradual(lab.Cubic(0.9), reactivate=True), lambda: lab.methods.ADMM(0.5),
    lambda: lab.methods.RigL(0.5, every_steps=2), lambda: lab.methods.L0(),
)

def fit(number):
    model = lab.build("lenet300", data)
    run = lab.fit(model, data, METHODS[number % 4](), epochs=6, batch_size=30, keep="best", checkpoint="c.safetensors",
                  every_steps=2, record="r.json", collapse="allow", progress=False)
    return [lab.results.tensor_hash(run.model.state_dict()), run.masks.fingerprint]

def recipe(number):
    model, options = lab.build("lenet300", data), {"folder": "work", "progress": False, "epochs": 2}
    options |= {"collapse": "allow"}
    made = (
        lambda: lab.recipes.iterative(model, data, 0.8, rounds=2, finetune=1, **options),
        lambda: lab.recipes.tickets(model, data, 0.8, rounds=2, **options),
        lambda: lab.recipes.admm(model, data, 0.8, finetune=1, **options),
    )[number % 3]()
    return [[t.method, lab.results.tensor_hash(t.run.model.state_dict()), t.run.masks.fingerprint] for t in made]

def store(number):
    # a program of the user's own that goes on from its state
    state = {"step": 0, "weights": torch.zeros(50, 20)}
    if Path("state").exists():
        state = storage.load_state("state")
    layer = torch.nn.Linear(20, 50)
    for step in range(state["step"], 40):
        state = {"step": step + 1, "weights": state["weights"] + (torch.arange(1000).view(50, 20) % (step + 2) == 0)}
        storage.save_state("state", state, keep_previous=True)
        layer.load_state_dict({"weight": state["weights"], "bias": torch.zeros(50)})
        storage.save(layer, "sparse", entropy="zlib")
    return [lab.results.tensor_hash(storage.load("sparse"))]

def sweeping(number):
    planned = sweep.plan("../n.ipynb", {"seed": [0, 1]}, "out")
    planned.run(jobs=1, say=lambda line: None)
    return [{k: r[k] for k in ("status", "error")} for r in planned.records().values()]

def killed(name, real, args):
    os.kill(os.getpid(), signal.SIGKILL)

def torn(name, real, args):
    if name == "write":
        real(args[0], args[1][:len(args[1]) // 2])
    killed(name, real, args)

def full(name, real, args):
    raise OSError(errno.ENOSPC, "No space left on device")

def fault_at(number, act, until):
    calls = [0]
    def patched(name, real):
        def call(*args, **named):
            calls[0] += 1
            if calls[0] == until:
                killed(name, real, args)
            if number <= calls[0] < until or calls[0] == number:
                act(name, real, args)
            return real(*args, **named)
        return call
    for name in ("write", "fsync", "replace", "link", "rename"):
        setattr(os, name, patched(name, getattr(os, name)))
    return calls

def child(order):
    os.chdir(order["folder"])
    signal.setitimer(signal.ITIMER_REAL, order["seconds"])  # ends it there and then, as SIGKILL does
    act = {"kill": killed, "torn": torn, "full": full}.get(order["act"], killed)
    calls = fault_at(order["at"], act, order["at"] + order["calls"])
    try:
        said = globals()[order["kind"]](order["number"])
    except (lab.ConfigError, lab.DataError, lab.RunError) as error:
        said = {"refused": f"{type(error).__name__}: {error}"}
    except BaseException as error:
        said = {"foreign": f"{type(error).__name__}: {error}"}
    with open("../said", "w") as file:
        json.dump({"said": said, "calls": calls[0]}, file)

print("ready", flush=True)
for line in sys.stdin:
    if not (pid := os.fork()):
        sys.stdout = open(os.devnull, "w")
        child(json.loads(line))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
"""Each line that it reads is one try of a piece of work, in a process of its own, with a fault at one of its calls."""

CELL = """
import os
os.environ["OMP_NUM_THREADS"] = "1"
import pruninglab as lab
data = lab.load("digits", train=200, test=60, size=8)
model = lab.build("lenet300", data, seed=seed)
run = lab.fit(model, data, lab.methods.Gradual(lab.Cubic(0.9)), epochs=6, batch_size=30, every_steps=2,
              checkpoint=f"{out}/c.safetensors", record=f"{out}/r.json", collapse="allow", progress=False)
open(f"{out}/hash.txt", "w").write(lab.results.tensor_hash(run.model.state_dict()))
"""
FOREVER = 10**9


@dataclass
class Works:
    """Pieces of work, and the process that does them."""

    base: Path
    process: Any
    wholes: dict[tuple[str, int], Any] = field(default_factory=dict)

    def go(self, kind: str, number: int, folder: Path, act: str = "", at: int = FOREVER, calls: int = FOREVER,
           seconds: float = 0) -> tuple[Any, int]:  # fmt: skip
        """One try; what it said, or None if it was killed, and how many calls it made."""
        (folder.parent / "said").unlink(missing_ok=True)
        order = {"kind": kind, "number": number, "folder": str(folder), "act": act, "at": at, "calls": calls}
        print(json.dumps(order | {"seconds": seconds}), file=self.process.stdin)
        if code := int(self.process.stdout.readline()):
            assert code in (-signal.SIGKILL, -signal.SIGALRM)
            return None, 0
        answer = json.loads((folder.parent / "said").read_text())
        return answer["said"], answer["calls"]

    def folder(self, name: str) -> Path:
        """An empty one, alone beside what is said of it."""
        path = self.base / name / "files"
        path.mkdir(parents=True)
        if "sweeping" in name:
            shutil.copy(self.base / "n.ipynb", path.parent)
        return path

    def whole(self, kind: str, number: int) -> Any:
        """What an undisturbed one says, and leaves: made once."""
        key = kind, number % {"fit": 4, "recipe": 3}.get(kind, 1)
        if key not in self.wholes:
            folder = self.folder(f"whole {kind} {key[1]}")
            began = time.perf_counter()
            said, calls = self.go(*key, folder)
            assert isinstance(said, list), said
            self.wholes[key] = said, left_in(folder), calls, time.perf_counter() - began
        return self.wholes[key]


@pytest.fixture(scope="module")
def works(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Works]:
    from nbformat import v4, writes

    base = tmp_path_factory.mktemp("faults")
    first = v4.new_code_cell('seed: int = 0  # seed\nout: str = ""  # folder', metadata={"tags": ["parameters"]})
    (base / "n.ipynb").write_text(writes(v4.new_notebook(cells=[first, v4.new_code_cell(CELL)])))
    pipe: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    process: Any
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", SERVER], **pipe) as process:
        assert process.stdout.readline() == "ready\n"
        yield Works(base, process)


def left_in(folder: Path) -> dict[str, Any]:
    """What lies in a folder: each file by name, with what must be the same at the end."""
    found = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("here-")]  # a name that is drawn
    return {str(path.relative_to(folder)): content(path) for path in sorted(found)}


def content(path: Path) -> Any:
    """Of a record all but its times and what it warns of; of a sparse file and a text the bytes."""
    if path.name == "cell.json":
        return {k: v for k, v in lab.results.tables.read_cell(path).items() if k not in ("seconds", "reached")}
    if path.suffix == ".json":
        record = vars(lab.Result.read(path))
        record["environment"].pop("command")  # of a kernel, with a name that is drawn
        return {k: v for k, v in record.items() if k not in ("times", "warnings")}
    if path.name == "hash.txt":
        return path.read_text()
    if path.name == "sparse":
        return lab.results.tensor_hash(storage.load(path))
    if path.name.startswith("state"):
        return repr(storage.load_state(path))
    if "safetensors" in path.name and path.suffix != ".lock":
        return sorted(storage.load_state(path))
    return "there"


def flip(draw: random.Random, path: Path) -> None:
    altered = bytearray(path.read_bytes())
    altered[draw.randrange(len(altered))] ^= 1 << draw.randrange(8)
    path.write_bytes(altered)


def cut_off(draw: random.Random, path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: draw.randrange(len(whole))])


def unchanged(path: Path, content: bytes) -> bool:
    return path.exists() and path.read_bytes() == content


def written(folder: Path) -> list[Path]:
    """The files that the package reads again, the newest last."""
    kinds, names = (".json", ".safetensors", ".previous"), ("state", "sparse")
    found = [p for p in folder.rglob("*") if p.suffix in kinds or p.name in names]
    found = [p for p in found if p.name != "kernel.json" and p.stat().st_size]
    return sorted(found, key=lambda path: path.stat().st_mtime_ns)


def one(works: Works, kind: str, number: int, fault: str) -> str:
    """One kill with a fault, and all tries until it is done: how it came out."""
    draw = random.Random(f"{kind} {number} {fault}")
    wanted, whole, calls, seconds = works.whole(kind, number)
    folder = works.folder(f"{kind} {number} {fault}")
    at = draw.randrange(1, calls)
    if fault == "full":
        works.go(kind, number, folder, "full", at, draw.randrange(1, calls))
    elif fault == "torn" and draw.random() < 0.5:
        works.go(kind, number, folder, "torn", at)
    elif kind == "sweeping" or draw.random() < 0.5:
        works.go(kind, number, folder, seconds=draw.uniform(0, seconds))
    else:
        works.go(kind, number, folder, "kill", at)
    harmed: tuple[Path, bytes] | None = None
    if files := written(folder):
        hurt = files[-1] if draw.random() < 0.5 else draw.choice(files)
        if fault == "flip":
            flip(draw, hurt)
        elif fault == "torn":
            cut_off(draw, hurt)
        harmed = hurt, hurt.read_bytes()
    refusals = 0
    while True:
        said, _ = works.go(kind, number, folder)
        assert said is not None
        assert "foreign" not in said, said
        if "refused" not in said:
            break
        files = [p for p in folder.rglob("*") if p.is_file()]
        named = [p for p in files if re.search(rf"{re.escape(p.name)}\b(?!\.)", said["refused"])]
        assert len(named) == 1, said  # the file that it says is to be deleted
        named[0].unlink()
        refusals += 1
        assert refusals <= 2, said
    assert said == wanted
    if fault and harmed and harmed[0].suffix == ".previous" and unchanged(*harmed):
        # the spare of a stage that was over: nobody reads or writes it again
        whole = {name: held for name, held in whole.items() if name != str(harmed[0].relative_to(folder))}
        harmed[0].unlink()
    assert left_in(folder) == whole
    return "refused in words, then right" if refusals else "right"


EACH = {"fit": 20, "recipe": 20, "store": 16, "sweeping": 4}
FAULTS = ("torn", "full", "flip")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kind", [*EACH])
@pytest.mark.slow
def test_sixty_kills_with_faults(works: Works, kind: str) -> None:
    """Every third of them with a file that is torn or has another bit, or on a full disk."""
    ended: Counter[tuple[str, str]] = Counter()
    for number in range(EACH[kind]):
        fault = FAULTS[number // 3 % 3] if number % 3 == 0 else ""
        ended[fault or "none", one(works, kind, number, fault)] += 1
    print(f"\n{kind}: {dict(ended)}")
    assert sum(ended.values()) == EACH[kind]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("kind", "fault"), [("fit", "torn"), ("recipe", "flip"), ("store", "full")])
def test_a_kill_with_a_fault(works: Works, kind: str, fault: str) -> None:
    one(works, kind, 0, fault)
