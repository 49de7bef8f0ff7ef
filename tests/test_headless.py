"""A notebook run to its end: no hang, no orphan, and a failure that says where."""

import asyncio
import os
from pathlib import Path
from typing import Any

import nbformat
import pytest

from pruninglab.errors import RunError
from pruninglab.sweep import headless

X = "x: int = 1  # a number"


def execute(source: Path, **options: Any) -> Any:
    output = source.with_name("out.ipynb")
    headless.execute(source, output, options.pop("parameters", {}), folder=source.parent, **options)
    return nbformat.read(output, 4)


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_parameters_folder_and_environment_arrive(notebook):
    source = notebook(X, "import os\nprint(x, os.getcwd(), os.environ['FOR_THIS'])")
    done = execute(source, parameters={"x": 3}, environment={"FOR_THIS": "one"})
    assert done.cells[-1].outputs[0].text.split() == ["3", str(source.parent), "one"]


def test_the_event_loop_of_a_caller_is_left_alone(notebook):
    """A worker thread takes the context of what gave it the work along, and with it a loop that runs elsewhere."""
    source = notebook(X, "print(x)")

    async def elsewhere() -> Any:
        pytest.importorskip("jupyter_core.utils").ensure_event_loop()
        return await asyncio.to_thread(execute, source)

    assert asyncio.run(elsewhere()).cells[-1].outputs[0].text == "1\n"


def test_traffic_of_widgets_does_not_hang(notebook):
    """Output widgets answer on the channel on which the reply is awaited."""
    cell = (
        "import ipywidgets\nfrom IPython.display import display\nout = ipywidgets.Output()\ndisplay(out)\n"
        "with out:\n    print(x)\n    display(x)\n_ = ipywidgets.interact(lambda a: print(a), a=(0, 10))"
    )
    done = execute(notebook(X, *[cell] * 25), limit=300)
    assert all(c.execution_count for c in done.cells)


def test_at_its_limit_the_kernel_and_what_it_started_are_killed(notebook, tmp_path):
    source = notebook(X, "import subprocess\nother = subprocess.Popen(['sleep', '600'])\n"
                         "open('pid', 'w').write(str(other.pid))\nother.wait()")  # fmt: skip
    pids: list[int] = []
    for limit in (3, 9, 60):  # a busy machine needs longer to get there
        with pytest.raises(headless.OutOfTime, match=f"time limit of {limit} s was reached"):
            execute(source, limit=limit, on_start=pids.append)
        if (tmp_path / "pid").exists():
            break
    for pid in (*pids, int((tmp_path / "pid").read_text())):
        assert not is_alive(pid)


def test_a_cell_that_fails_is_named_and_the_notebook_kept(notebook):
    source = notebook(X, "y = x", "1 / 0")
    with pytest.raises(RunError, match=r"cell \[3\] ended in ZeroDivisionError: division by zero"):
        execute(source)
    kept = nbformat.read(source.with_name("out.ipynb"), 4)
    assert any(o.output_type == "error" for c in kept.cells if c.cell_type == "code" for o in c.outputs)


def test_a_kernel_that_dies_is_said(notebook):
    with pytest.raises(RunError, match="the kernel died; out of memory"):
        execute(notebook(X, "import os\nos._exit(1)"))


@pytest.mark.parametrize(("failures", "succeeds"), [(1, True), (2, False)])
def test_a_kernel_that_does_not_start_is_started_once_more(notebook, monkeypatch, failures, succeeds):
    start, tries = headless._Client.start_new_kernel_client, []

    def unlucky(self: Any, **kwargs: Any) -> Any:
        tries.append(self)
        if len(tries) <= failures:
            self._cleanup_kernel()
            raise RuntimeError("Address already in use")
        return start(self, **kwargs)

    monkeypatch.setattr(headless._Client, "start_new_kernel_client", unlucky)
    pids: list[int] = []
    if succeeds:
        execute(notebook(X, "x"), on_start=pids.append)
    else:
        with pytest.raises(RunError, match=r"the kernel did not start: .*Address already in use"):
            execute(notebook(X, "x"), on_start=pids.append)
    assert len(tries) == len(pids) == 2
    assert not any(map(is_alive, pids))


def test_what_is_not_there_can_be_killed():
    headless.kill(2**22 + os.getpid())
