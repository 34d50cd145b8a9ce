"""What users would pick instead: ONNX Runtime's static int8 and torch.ao's FX mode, on the same batches."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from benchmarks._loaders import Batch, run, values_of
from profiler.quant.deploy.session import make_session, run_session

OPSET = 17


def onnx_runtime_static(model: nn.Module, batches: Sequence[Batch]) -> nn.Module:
    """`quantize_static` of the float model's ONNX file: int8, per channel, min-max, all batches, else its defaults."""
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static

    with tempfile.TemporaryDirectory() as folder, _quiet():
        path, quantized = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        names = _export(model, batches, path)
        quantize_static(
            str(path),
            str(quantized),
            _reader(names, batches),
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        session = make_session(quantized.read_bytes(), 3)
    return _SessionModel(session, names, _keys(batches[0]), run(model, batches[0]))


def torch_ao_fx(model: nn.Module, batches: Sequence[Batch]) -> nn.Module:
    """`prepare_fx` and `convert_fx` with the default qconfigs of x86."""
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    with _quiet():
        prepared = prepare_fx(model, get_default_qconfig_mapping("x86"), tuple(values_of(batches[0])))
        for batch in batches:
            run(prepared, batch)
        converted: nn.Module = convert_fx(prepared)
    return converted


PEERS: dict[str, Callable[[nn.Module, Sequence[Batch]], nn.Module]] = {
    "ONNX Runtime static": onnx_runtime_static,
    "torch.ao FX": torch_ao_fx,
}


class _SessionModel(nn.Module):
    """An ONNX Runtime session that is called like the model that it was made from."""

    def __init__(self, session: Any, names: list[str], keys: list[str], example_output: Any) -> None:
        super().__init__()
        self.session, self.names, self.keys = session, names, keys
        leaves, self.structure = tree_flatten(example_output)
        self.is_tensor = [isinstance(leaf, Tensor) for leaf in leaves]
        self.others = leaves

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        results = iter(run_session(self.session, self.names, args or [kwargs[key] for key in self.keys]))
        leaves = zip(self.is_tensor, self.others, strict=True)
        return tree_unflatten([next(results) if flag else other for flag, other in leaves], self.structure)


class _Positional(nn.Module):
    """A model that takes the values of a batch in order and gives a flat tuple of tensors, for the ONNX exporter."""

    def __init__(self, model: nn.Module, keys: list[str]) -> None:
        super().__init__()
        self.model, self.keys = model, keys

    def forward(self, *args: Any) -> tuple[Tensor, ...]:
        output = self.model(**dict(zip(self.keys, args, strict=True))) if self.keys else self.model(*args)
        return tuple(leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor))


def _export(model: nn.Module, batches: Sequence[Batch], path: Path) -> list[str]:
    """The float model as ONNX; gives the names of its inputs."""
    values = values_of(batches[0])
    names = [f"input_{i}" for i in range(len(values))]
    axes = {name: _dynamic_axes([values_of(batch)[i] for batch in batches]) for i, name in enumerate(names)}
    torch.onnx.export(
        _Positional(model, _keys(batches[0])).eval(),
        tuple(values),
        str(path),
        input_names=names,
        dynamic_axes=axes,
        opset_version=OPSET,
        dynamo=False,
    )
    return names


def _dynamic_axes(tensors: Sequence[Tensor]) -> dict[int, str]:
    """The batch, what differs among the batches, and every axis of ids and masks, whose length is the text's."""
    first = tensors[0]
    differ = {axis for axis in range(first.dim()) if len({t.shape[axis] for t in tensors}) > 1}
    always = set(range(first.dim())) if not first.is_floating_point() else set(range(min(1, first.dim())))
    return {axis: f"axis_{axis}" for axis in sorted(differ | always)}


def _reader(names: list[str], batches: Sequence[Batch]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.left, None)
            if batch is None:
                return None
            return {name: value.numpy() for name, value in zip(names, values_of(batch), strict=True)}

    return Reader()


def _keys(batch: Batch) -> list[str]:
    return list(batch) if isinstance(batch, dict) else []


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the peers' warnings, which speak to those who use them."""
    former = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(former)
