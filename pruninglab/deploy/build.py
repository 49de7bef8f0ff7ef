"""Builds the engine's C file for this processor, once, and loads it."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from ..data.stored import cache_folder
from ..storage.files import write_atomic

SOURCE = Path(__file__).with_name("engine.c")
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-shared", "-fPIC", "-pthread")
PORTABLE = ("-O3", "-std=c99", "-shared", "-fPIC")
LIMIT = 120
"""Seconds for the compiler: far more than it takes."""


class Unbuilt(Exception):
    """Why there is no compiled code."""


def compiler() -> str:
    """The system's C compiler: `CC` if that is set, else the first of cc, gcc and clang."""
    names = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        raise Unbuilt(f"no C compiler was found (looked for {', '.join(names)}); install gcc or clang, or set CC")
    return found


def library() -> ctypes.CDLL:
    """The engine, from the cache or built now. `Unbuilt` says why there is none."""
    built, where = file_name(), cache_folder() / "engine"
    for folder in (where, _own_folder()):
        try:
            return _loaded(folder / built)
        except OSError:  # not there yet, altered, not writable, or a file system that runs no code
            pass
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _build(folder / built)
            return _loaded(folder / built)
        except OSError as error:
            refused = f"{folder} cannot hold compiled code ({error})"
    raise Unbuilt(refused)


def portable(source: Path) -> ctypes.CDLL:
    """A C file as a library, built for any processor of this kind and gone with the process."""
    built = _own_folder() / f"{hashlib.sha256(source.read_bytes()).hexdigest()[:24]}.so"
    if not built.exists():
        _build(built, source, PORTABLE)
    return ctypes.CDLL(str(built))


@cache
def _own_folder() -> Path:
    """For this process alone, where the cache cannot be written."""
    made = tempfile.TemporaryDirectory(prefix="pruninglab-engine-")
    _own_folders.append(made)
    return Path(made.name)


_own_folders: list[tempfile.TemporaryDirectory[str]] = []


def file_name() -> str:
    """By content: the source, the flags, the compiler and the processor, since a home may be shared by several."""
    path = compiler()
    try:
        version = subprocess.run([path, "--version"], capture_output=True, timeout=LIMIT, check=False).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unbuilt(f"{path} does not run ({error})") from None
    parts = [SOURCE.read_bytes(), " ".join(FLAGS).encode(), path.encode(), version, _processor().encode()]
    return f"{hashlib.sha256(b'|'.join(parts)).hexdigest()[:24]}.so"


@cache
def _processor() -> str:
    """What `-march=native` goes by: the instructions that this processor has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    kinds = ("model name", "flags", "Features", "CPU part")
    first = {line.partition(":")[0].strip(): line for line in reversed(lines) if line.startswith(kinds)}
    return "|".join([platform.machine(), platform.processor(), *(first[key] for key in sorted(first))])


def _build(path: Path, source: Path = SOURCE, flags: Sequence[str] = FLAGS) -> None:
    """Into a file of its own, which is then renamed: processes that build at once do not see each other's halves."""
    number, name = tempfile.mkstemp(suffix=".so", dir=path.parent)
    os.close(number)
    part = Path(name)
    try:
        command = [compiler(), *flags, str(source), "-o", name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
        except subprocess.TimeoutExpired:
            raise Unbuilt(f"{command[0]} took more than {LIMIT} seconds") from None
        if done.returncode:
            said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
            raise Unbuilt(f"{command[0]} could not build {source.name}: {said.strip()}")
        part.replace(path)
        write_atomic(_checksum(path), _digest(path))
    finally:
        part.unlink(missing_ok=True)


def _checksum(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).hexdigest().encode()


def _loaded(path: Path) -> ctypes.CDLL:
    if _checksum(path).read_bytes() != _digest(path):  # a changed bit of code may do anything
        raise OSError(f"{path} was altered since it was built")
    library = ctypes.CDLL(str(path))
    library.run.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 2 + [ctypes.c_void_p, ctypes.c_int]
    library.run.restype = None
    library.run_one.argtypes = [ctypes.c_void_p] * 4
    library.run_one.restype = None
    library.seconds.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int]
    library.seconds.restype = ctypes.c_double
    return library
