"""The pruned network for other people's runtimes: an ONNX file, and a program of `torch.export`."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ConfigError, RunError
from ..storage.files import check_writable, write_atomic
from ..train.run import Run
from ..typed import checked
from .network import Example, images, plain

TOLERANCE = 1e-4
"""Of the largest logit."""


@checked
def export_program(
    model: nn.Module | Run, example: Example | None = None, masks: Mapping[str, Tensor] | None = None
) -> torch.export.ExportedProgram:
    """The network as a program of `torch.export`, without the channels that nothing needs, for batches of any size.

    `torch.export.save` writes it, and `torch.export.load` reads it without the code of the model. What `example` and
    `masks` are, `deploy.compile` says.

        program = lab.deploy.export_program(run)
        logits = program.module()(images)
    """
    return _program(plain(model, example, masks), images(model, example))


@checked
def export_onnx(
    model: nn.Module | Run,
    path: str | Path,
    example: Example | None = None,
    masks: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write the network as an ONNX file, without the channels that nothing needs, and check it in onnxruntime.

    The file takes batches of any size, as `images`, and gives `logits`. Weights that are 0 in channels that stay are
    stored and computed as any other: only `compile` and `export_c` leave them out. Logits that differ from those of
    PyTorch are a RunError, and no file is left. This needs `pip install 'pruninglab[deploy]'`.

        lab.deploy.export_onnx(run, "net.onnx")
    """
    path, onnxruntime = check_writable(path, "path"), _onnxruntime()
    small, x = plain(model, example, masks), images(model, example)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        made: Any = torch.onnx.export(_program(small, x), (x,), dynamo=True, verbose=False,
                                      input_names=["images"], output_names=["logits"])  # fmt: skip
    content = made.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for batch in (x, x[:1]):
        _compare(session.run(["logits"], {"images": batch.numpy()})[0], small(batch))
    write_atomic(path, content)
    return path


def _compare(got: np.ndarray, wanted: Tensor) -> None:
    error = float(np.abs(got - wanted.numpy()).max() / max(float(wanted.abs().max()), 1e-30))
    if not error <= TOLERANCE:
        raise RunError(
            f"onnxruntime gives logits that differ from PyTorch's by {error:.1e} of the largest; expected at most "
            f"{TOLERANCE:g}. The network may do something that ONNX does not have: export its parts to find it."
        )


def _program(small: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    x = x[torch.arange(7) % len(x)]  # no size that a network is likely to have, and not 1, which would be fixed
    try:
        return torch.export.export(small, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as error:  # whatever a network's code does
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(
            f"torch.export cannot follow the network: {said[0]}. Expected one that takes a batch of any size and "
            "whose steps do not depend on the numbers in it."
        ) from None


def _onnxruntime() -> Any:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch.onnx needs it)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"this needs {error.name}, which is not installed: pip install 'pruninglab[deploy]'."
        ) from None
    return onnxruntime
