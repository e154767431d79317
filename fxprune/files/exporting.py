"""Export: a pruned model as a file that runs without its source code, verified by running it."""

from __future__ import annotations

import copy
import importlib
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import FxpruneError
from fxprune.files.writing import replace_file
from fxprune.running import trees
from fxprune.running.calls import Call, batch_size_of, has_batch, with_batch
from fxprune.running.devices import check_values
from fxprune.tracing.notes import call_of
from fxprune.verification import relative_error

__all__ = ["export"]

# Relative to the largest output: other kernels sum in another order. Not tuned.
_TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
# torch.export takes a size of 1 for a constant; the result must run at other sizes than that of the export.
_EXPORTED_BATCH, _CHECKED_BATCHES = 2, (1, 3)


def export(
    model: nn.Module,
    path: str | Path,
    example_inputs: Any = None,
    *,
    dynamic_batch: bool = True,
    tolerance: float | None = None,
) -> float:
    """Write a model as ONNX or as a torch.export archive, which run without the code of the model.

    Before the file is written, onnxruntime or torch runs its content and the outputs are compared with the model's: at
    batch sizes other than that of the export if the batch is dynamic.

    Args:
        model: a pruned model, or any other; exported in eval mode, not changed.
        path: ends in ``.onnx`` (extra `export`: onnx, onnxscript, onnxruntime) or ``.pt2``.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments; default as for `fxprune.trace`.
        dynamic_batch: whether the first dimension of the inputs may have any size.
        tolerance: the largest accepted difference of any output entry, divided by the largest entry of that output;
            default by dtype, 1e-3 for float32.

    Returns:
        The largest such difference.

    Raises:
        FxpruneError: the model cannot be exported, or the result does not compute what the model does.
    """
    path = Path(path)
    if path.suffix not in (".onnx", ".pt2"):
        raise FxpruneError(f"path (={str(path)!r}) must end in .onnx or .pt2: the ending says what to write")
    if path.suffix == ".onnx":
        _need_onnx()
    check_values("export", model)
    model = copy.deepcopy(model).eval()
    call = call_of(model, example_inputs)
    size = batch_size_of(call)
    if dynamic_batch and size is None:
        raise FxpruneError("the example inputs have no common first dimension as batch: give dynamic_batch=False")
    exported_at, checks = call, [call]
    if dynamic_batch:
        assert size is not None
        exported_at = with_batch(call, size, _EXPORTED_BATCH)
        checks = [with_batch(call, size, batch) for batch in _CHECKED_BATCHES]
    with _quiet():
        program = _exported(model, exported_at, size if dynamic_batch else None)
        content = _to_onnx(program) if path.suffix == ".onnx" else _to_archive(program)
        run = _onnx_runner(content) if path.suffix == ".onnx" else _archive_runner(content)
        worst = max(_difference(model, run, each, path, dynamic_batch) for each in checks)
    allowed = _default_tolerance(model) if tolerance is None else tolerance
    if not worst <= allowed:
        raise FxpruneError(
            f"{str(path)!r} is not written: its outputs differ from the model's by {worst:.1e} of the largest, more "
            f"than tolerance (={allowed:g})"
        )
    replace_file(path, content, "export")
    return worst


# --- export -----------------------------------------------------------------------------------------------------------


def _exported(model: nn.Module, call: Call, size: int | None) -> torch.export.ExportedProgram:
    args, kwargs = call
    shapes = None
    if size is not None:
        batch = torch.export.Dim("batch")
        args_shapes, kwargs_shapes = trees.map_leaves(
            lambda leaf: {0: batch} if has_batch(leaf, _EXPORTED_BATCH) else None, call
        )
        # By the names of forward's parameters.
        shapes = {**dict(zip(_parameters_of(model), args_shapes, strict=False)), **kwargs_shapes}
    try:
        with torch.no_grad():
            return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        cure = "; dynamic_batch=False exports it for one batch size" if size is not None else ""
        raise FxpruneError(f"torch.export cannot export {type(model).__name__}: {_first_line(error)}{cure}") from error


def _parameters_of(model: nn.Module) -> list[str]:
    return list(inspect.signature(model.forward).parameters)


def _to_archive(program: torch.export.ExportedProgram) -> bytes:
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def _to_onnx(program: torch.export.ExportedProgram) -> bytes:
    try:
        converted: Any = torch.onnx.export(program, dynamo=True, verbose=False)
        content: bytes = converted.model_proto.SerializeToString()
    except Exception as error:
        raise FxpruneError(f"torch.onnx cannot convert the exported model: {_first_line(error)}") from error
    return content


def _need_onnx() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise FxpruneError(f"an export to ONNX needs {name} ({error}): pip install 'fxprune[export]'") from error


# --- the comparison ---------------------------------------------------------------------------------------------------


def _archive_runner(content: bytes) -> Callable[[Call], list[Tensor]]:
    module = torch.export.load(io.BytesIO(content)).module()

    def run(call: Call) -> list[Tensor]:
        args, kwargs = call
        return trees.tensors(module(*args, **kwargs))

    return run


def _onnx_runner(content: bytes) -> Callable[[Call], list[Tensor]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(call: Call) -> list[Tensor]:
        feed = dict(zip(names, (tensor.detach().cpu().numpy() for tensor in trees.tensors(call)), strict=True))
        return [torch.from_numpy(output) for output in session.run(None, feed)]

    return run


def _difference(
    model: nn.Module, run: Callable[[Call], list[Tensor]], call: Call, path: Path, dynamic_batch: bool
) -> float:
    """The largest difference of an output from the model's, relative to its largest entry."""
    args, kwargs = copy.deepcopy(call)
    size = batch_size_of(call)
    with torch.no_grad():
        expected = trees.tensors(model(*args, **kwargs))
    try:
        with torch.no_grad():
            got = run(call)
    except Exception as error:
        cure = "; dynamic_batch=False exports it for one batch size" if dynamic_batch else ""
        raise FxpruneError(
            f"{str(path)!r} is not written: the exported model fails when it runs at batch size {size}: "
            f"{_first_line(error)}{cure}"
        ) from error
    if [x.shape for x in expected] != [x.shape for x in got]:
        raise FxpruneError(
            f"{str(path)!r} is not written: its outputs have shapes {[list(x.shape) for x in got]} at batch size "
            f"{size}, the model's {[list(x.shape) for x in expected]}"
        )
    return max((_relative(a, b) for a, b in zip(expected, got, strict=True)), default=0.0)


def _relative(expected: Tensor, got: Tensor) -> float:
    expected, got = expected.detach().cpu(), got.detach().cpu()
    # Infinities are equal, but have no difference.
    return 0.0 if torch.equal(expected, got) else relative_error(expected, got)


def _default_tolerance(model: nn.Module) -> float:
    """The tolerance for the narrowest float type in the model."""
    dtypes = {tensor.dtype for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()}
    return max((_TOLERANCES.get(dtype, 1e-3) for dtype in dtypes), default=1e-3)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters: what matters of their warnings shows when the result runs."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
