"""Files that somebody made or altered: refused in words, soon, and without filling the memory."""

import gzip
import json
import random
import resource
import signal
import traceback
import zlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from torch import nn

import pruninglab as lab
from pruninglab import storage, sweep
from pruninglab.data import stored
from pruninglab.storage import codec, fileformat, files
from pruninglab.sweep import cell

SECONDS, BYTES = 2.0, 200 * 2**20
OWN = (lab.ConfigError, lab.DataError, lab.RunError)


class Hang(BaseException):
    pass


@contextmanager
def bounded() -> Generator[None]:
    """Two seconds of this process, and 200 MB more than it has; beyond that comes what is no error of the package."""

    def hang(*_: Any) -> None:
        raise Hang

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before, limit = signal.signal(signal.SIGVTALRM, hang), resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, limit[1]))
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limit)


WORDS = [
    *("", " ", "-1", "0", "1", "3", "64", "4096", "1000000000", "99999999999999999999", "1e400", "NaN", "nan", "null"),
    *("true", "[]", "{}", "=", "-", ":", ".", ",", '"', "F32", "F64", "BOOL", "U8", "F32<F16", "dense", "bitmap"),
    *(
        "rows.",
        "cols.",
        "turn.",
        "gap:0",
        "gap:63",
        "rice:1000000000",
        "csr:40",
        "raw",
        "book:1",
        "top:1",
        "z",
        "l",
        "b",
    ),
    *("tensor", "bits", "sparse", "masks", "items", "list", "tuple", "\x00", "\n", "é", "../../x", "[" * 3000),
]


def with_words(draw: random.Random, text: str) -> str:
    """Words and numbers of a text replaced, left out, doubled or exchanged."""
    for _ in range(draw.randint(1, 3)):
        start = draw.randrange(len(text) + 1)
        stop = min(len(text), start + draw.choice([0, 1, 1, 2, 5, 20]))
        if draw.random() < 0.5:  # a whole word or number
            while start and text[start - 1].isalnum():
                start -= 1
            while stop < len(text) and text[stop].isalnum():
                stop += 1
        text = text[:start] + draw.choice([*WORDS, text[start:stop] * 2]) + text[stop:]
    return text


def with_bytes(draw: random.Random, content: bytes) -> bytes:
    altered = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(altered) + 1)
        match draw.randrange(5):
            case 0:
                del altered[place:]
            case 1:
                del altered[place : place + draw.randint(1, 40)]
            case 2:
                altered[place:place] = altered[: draw.randint(0, 40)]
            case _ if place < len(altered):
                altered[place] ^= 1 << draw.randrange(8)
    return bytes(altered)


def values(draw: random.Random, tree: Any) -> Any:
    """A record in which one value is another."""
    odd = [None, True, -1, 0, 2.5, 10**400, "x", "", [], {}, [[]], {"a": 1}, "<b>", float("nan"), 1e308]
    if isinstance(tree, dict) and tree and draw.random() < 0.9:
        name = draw.choice(list(tree))
        if draw.random() < 0.1:
            return {k: v for k, v in tree.items() if k != name}
        return {**tree, name: values(draw, tree[name])}
    if isinstance(tree, list) and tree and draw.random() < 0.9:
        place = draw.randrange(len(tree))
        return [*tree[:place], values(draw, tree[place]), *tree[place + 1 :]]
    return draw.choice(odd)


Forge = Callable[[random.Random], bytes]


@pytest.fixture(scope="module")
def kinds(blobs: lab.Data, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Forge, Callable[[Path], Any]]]:
    """Each kind of file: how one is forged, its checksum right, and what reads it."""
    base = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 30), nn.ReLU(), nn.Linear(30, 4))
    options: Any = {"epochs": 1, "collapse": "allow", "progress": False}
    run = lab.fit(model, blobs, lab.methods.OneShot(0.7), checkpoint=base / "c", record=base / "r", **options)
    run.snapshot().save(base / "s")
    packed = fileformat.pack(run.model.state_dict(), entropy="zlib")
    record = json.loads((base / "r").read_bytes())
    made = cell._made("a", {"x": 1}, "done", "", 1.0)
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell("x: int = 1  # one of 1, 2\ny = [1, 'a']", metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell("print(x)"),
        ]
    )
    scratch = base / "scratch"

    def forged_sparse(draw: random.Random) -> bytes:
        lines = with_words(draw, "\n".join(packed.lines)).split("\n")
        return fileformat.Packed(lines, packed.entries).content()

    def forged_state(name: str) -> Forge:
        content = (base / name).read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        structure, tensors = header["__metadata__"]["state"], storage.files.from_safetensors(content)

        def forge(draw: random.Random) -> bytes:
            altered = with_words(draw, structure)
            if draw.random() < 0.5:
                altered = json.dumps(values(draw, json.loads(structure)))
            files.write_state(scratch, tensors, altered)
            return scratch.read_bytes()

        return forge

    def forged_json(whole: dict[str, Any]) -> Forge:
        def forge(draw: random.Random) -> bytes:
            altered = values(draw, {k: v for k, v in whole.items() if k != "sha256"})
            files.save_json(scratch, altered if isinstance(altered, dict) else {"schema": 2, "sweep": 2})
            return scratch.read_bytes()

        return forge

    def text(whole: str) -> Forge:
        return lambda draw: with_words(draw, whole).encode(errors="replace")

    def shown(frame: Any) -> None:
        assert len(frame) + len(frame.attrs["skipped"]) == 1

    def resumed(path: Path) -> None:
        path.with_name("file.previous").unlink(missing_ok=True)
        lab.fit(model, blobs, lab.methods.OneShot(0.7), checkpoint=path, **options)

    return {
        "sparse": (forged_sparse, storage.load),
        "sparse into a model": (forged_sparse, lambda path: storage.load(path, nn.Sequential(nn.Linear(10, 30)))),
        "snapshot": (forged_state("s"), lab.Snapshot.load),
        "checkpoint": (forged_state("c"), resumed),
        "record": (forged_json(record), lab.Result.read),
        "records": (forged_json(record), lambda path: shown(lab.results.load(path))),
        "cell": (forged_json(made), lab.results.tables.read_cell),
        "weights": (lambda draw: (base / "s").read_bytes(), lambda path: lab.models.weights.read_weights(path)),
        "toml": (text('x = [1, 2]\nmethod = "a"\nout = "b"\n'), lambda path: sweep.read_grid(path)),
        "yaml": (text("x: [1, 2]\nmethod: a\nout: &b [c]\n"), lambda path: sweep.read_grid(path)),
        "notebook": (text(nbformat.writes(notebook)), lambda path: sweep.plan(path, {"x": [1]}, "out")),
    }


SUFFIX = {"toml": ".toml", "yaml": ".yaml", "weights": ".safetensors"}


def attack(kind: str, kinds: Any, folder: Path, times: int, seed: int = 0) -> None:
    forge, read = kinds[kind]
    path = folder / f"file{SUFFIX.get(kind, '')}"
    foreign: list[str] = []
    for number in range(times):
        draw = random.Random(f"{kind} {seed} {number}")
        content = forge(draw)
        path.write_bytes(with_bytes(draw, content) if draw.random() < 0.3 else content)
        with bounded():
            try:
                read(path)
            except OWN:
                pass
            except BaseException as error:
                frame = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{Path(frame.filename).name}:{frame.lineno}"
                foreign.append(f"number {number}: {type(error).__name__} {error!s:.200} ({where})")
    assert not foreign, foreign


KINDS = ("sparse", "sparse into a model", "snapshot", "checkpoint", "record", "records", "cell", "weights", "toml",
         "yaml", "notebook")  # fmt: skip


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_an_altered_file_is_refused_in_words(kinds, tmp_path, kind):
    attack(kind, kinds, tmp_path, 15 if kind == "checkpoint" else 40)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_twenty_thousand_altered_files_are_refused_in_words(kinds, tmp_path, kind):
    attack(kind, kinds, tmp_path, 200 if kind == "checkpoint" else 1_980, seed=1)


def sparse_file(line: str, *streams: bytes) -> bytes:
    """A file of one tensor, `w`, with right checksums and wrong contents."""
    whole = fileformat.Packed([line], [])
    content = b"".join(streams)
    only = {"dtype": "U8", "shape": [len(content)], "data_offsets": [0, len(content)]}
    metadata = {"format": fileformat.FORMAT, "sha256": "0" * 16, "contents": "\n".join(whole.lines)}
    header = json.dumps({"__metadata__": metadata, "streams": only}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    made = len(header).to_bytes(8, "little") + header + content
    return made.replace(b"0" * 16, fileformat._digest(made, "0" * 16).encode(), 1)


@pytest.mark.parametrize(
    ("line", "streams"),
    [
        ("F32 30000,30000 0 bitmap raw 0,0,0 0000 w", ()),
        ("F32 900000000 900000000 dense book:1 0,0,4 0000 w", (b"\0\0\0\1",)),
        ("F32 1,8 2 rice:1000000000 raw 1,8,0 0000 w", (b"\x40", bytes(8))),
        ("F32 1,8 2 gap:99 raw 1,8,0 0000 w", (b"\x40", bytes(8))),
        ("F32 2,8 2 csr:40 raw 11,8,0 0000 w", (b"\xff" * 11, bytes(8))),
        (f"F32 1,8 2 {'rows.' * 50_000}bitmap raw 1,8,0 0000 w", (b"\x40", bytes(8))),
        ("F32 -1,-8 2 bitmap raw 1,8,0 0000 w", (b"\x40", bytes(8))),
        ("F32 1,8 2 bitmap raw -1,8,0 0000 w", (b"\x40", bytes(8))),
        ("F32 1,8 2 bitmap raw 1,800,0 0000 w", (b"\x40", bytes(8))),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_small_file_does_not_become_a_large_one(tmp_path, line, streams):
    (tmp_path / "m").write_bytes(sparse_file(line, *streams))
    with bounded(), pytest.raises(lab.DataError, match=r"m is refused: w cannot be decoded"):
        storage.load(tmp_path / "m")


def test_a_small_stream_does_not_become_a_large_one(tmp_path):
    bomb = codec.squeeze(bytes(2**28), "bz2")
    for line, streams in (
        (f"F32 1,8 2 bitmap raw {len(bomb)}b,8,0 0000 w", (bomb, bytes(8))),
        (f"F32 1000,1000 1000000 dense raw 0,{len(bomb)}b,0 0000 w", (bomb,)),
    ):
        (tmp_path / "m").write_bytes(sparse_file(line, *streams))
        with bounded(), pytest.raises(lab.DataError, match=r"m is refused: w cannot be decoded"):
            storage.load(tmp_path / "m")


def test_a_published_file_that_expands_without_end_is_refused(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name in stored.IDX:
        (folder / f"{name}.gz").write_bytes(gzip.compress(b"x"))
    zeros = zlib.compressobj(wbits=31)
    (folder / f"{stored.IDX[0]}.gz").write_bytes(
        b"".join(zeros.compress(bytes(2**22)) for _ in range(80)) + zeros.flush()
    )
    with bounded(), pytest.raises(lab.DataError, match="is damaged"):
        lab.load("MNIST", root=tmp_path)


def test_a_large_tensor_of_zeros_comes_back_where_it_is_wanted(tmp_path):
    model = nn.Linear(5000, 1000)
    nn.init.zeros_(model.weight)
    storage.save(model, tmp_path / "m")
    with pytest.raises(lab.DataError, match="limit=… allows more"):
        storage.load(tmp_path / "m")
    assert storage.load(tmp_path / "m", limit=2**25)["weight"].shape == (1000, 5000)
    assert not storage.load(tmp_path / "m", nn.Linear(5000, 1000)).weight.any()


def test_the_largest_that_any_small_file_may_become_fits_the_bound(tmp_path):
    (tmp_path / "m").write_bytes(sparse_file("U8 4194304,4 16777216 dense book:1 0,0,1 0000 w", b"\1"))
    with bounded():
        assert storage.load(tmp_path / "m")["w"].shape == (2**22, 4)


def test_a_tensor_of_a_state_is_taken_once(tmp_path):
    packed = {"bits": ["b", [8 * 2**20]]}
    structure = json.dumps({"items": [[i, packed] for i in range(1000)]})
    files.write_state(tmp_path / "s", {"b": torch.ones(2**20, dtype=torch.uint8)}, structure)
    with bounded(), pytest.raises(lab.DataError, match="cannot be read as a state file"):
        storage.load_state(tmp_path / "s")


@pytest.mark.parametrize("text", ["a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "a: " + "[" * 5000])
def test_a_grid_that_explodes_is_refused(tmp_path, text):
    (tmp_path / "g.yaml").write_text(text)
    with bounded(), pytest.raises(lab.ConfigError, match=r"g\.yaml"):
        sweep.read_grid(tmp_path / "g.yaml")


def test_a_grid_that_never_ends_is_refused(notebook, tmp_path):
    source = notebook("x: int = 1  # n\ny: int = 1  # n", "x")
    for given in ({"x": "0:100000000000"}, {"x": "0:2000", "y": "0:2000"}):
        with bounded(), pytest.raises(lab.ConfigError, match=r"1,000,000"):
            sweep.plan(source, given, tmp_path / "out")
