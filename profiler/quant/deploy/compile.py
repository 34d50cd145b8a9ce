"""compile_model and load_compiled: the integer model as a file, and back as a callable."""

from __future__ import annotations

import json
import logging
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from profiler.errors import ConfigError, DataError, ModelError, UnsupportedOpError
from profiler.quant.deploy.batch import BATCH, BatchInputs, free_batch
from profiler.quant.deploy.check import find_problems
from profiler.quant.deploy.export import Exported, OpMark, record_model, require_onnx
from profiler.quant.deploy.guards import parse_opt, require_converted, target_march
from profiler.quant.deploy.path import path_note
from profiler.quant.deploy.probe import integer_kernels_are_exact, unsigned_kernels_are_exact
from profiler.quant.deploy.session import make_session, run_session
from profiler.quant.deploy.structure import flat_tensors, rebuild_output
from profiler.quant.deploy.unsigned import with_unsigned_activations
from profiler.quant.march import March
from profiler.quant.wrapping import skipped_texts, skipping

_LOG = logging.getLogger(__name__)
_KEY = "quant_profiler"
_SOURCES = ("ddr", "resizer", "pyramid")
_LAYOUTS = (None, "NCHW", "NHWC")
NOTE = "Runs in ONNX Runtime; the march is emulated, no vendor hardware or compiler is involved."


def compile_model(
    module: nn.Module,
    example_inputs: Any,
    hbm: str | Path,
    march: March | str | None = None,
    name: str | None = None,
    input_source: Any = "ddr",
    input_layout: str | None = None,
    output_layout: str = "NCHW",
    opt: int | str = "O2",
    balance_factor: int = 2,
    progressbar: bool = True,
    jobs: int = 16,
    debug: bool = True,
    extra_args: Sequence[str] | None = None,
    dynamic_batch: bool | str | Sequence[str] = "auto",
) -> int:
    """Write the integer model as ONNX with integer operators, for ONNX Runtime.

    The file holds the run with the example inputs: sizes are those of the example, but for the batch where it can be
    free, and where the model's Python code decides by the contents of a tensor (`if x.sum() > 0:`), the path that the
    example takes; a warning then names the line, and the op where another input parts from it.

    Args:
        module: converted model in eval, or `torch.jit.trace` of one.
        example_inputs: a tensor, a tuple or list of inputs, or a dict by parameter name; any device.
        hbm: path; ending in `.onnx` a bare file, else a zip archive with `model.onnx`, `scales.json`, `ops.json` and
            `versions.json`.
        march: target; the one that is set by default. Written into the file.
        name: name of the model; the file's stem by default.
        input_source: "ddr", "resizer" or "pyramid", or one per input; written into the file.
        input_layout: "NHWC" where 4-d inputs of the file are channels last; example_inputs are always NCHW.
        output_layout: the same for 4-d outputs.
        opt: optimisation level that ONNX Runtime will use, 0..3 or "O0".."O3".
        balance_factor: 0..100; accepted and written into the file; ONNX Runtime has no such setting.
        progressbar: accepted; the export takes about one forward.
        jobs: accepted; the export runs in one thread.
        debug: keep the source line of each op in the file.
        extra_args: accepted and written into the file.
        dynamic_batch: "auto": the size of axis 0 is free where only sizes depend on it and the file, checked at several
            sizes (1 to 4, that of the example, twice it, and 67 or what a large model can run), gives equal results at
            each, else a log line says why it is not; True: an error if it cannot be; False: static. Names of inputs:
            these have a batch axis; otherwise the first input, and those that are as long.

    Returns:
        0 if the march can run all of it, else the number of problems (see check_model), each logged as a warning; the
        file is written all the same. Whatever else goes wrong is an exception.

    Raises:
        ModelError: not a converted model.
        StateError: training mode, or live observers.
        UnsupportedOpError: an operator without an ONNX form, named with its source line; a number read from a tensor is
            part of the graph; or dynamic_batch was asked for and cannot be.
        ConfigError: an argument that cannot be used, or the packages of the extra `deploy` are missing.
    """
    require_onnx()
    path = Path(hbm)
    level = parse_opt(opt)
    target = target_march(march)
    _require_arguments(input_source, input_layout, output_layout)
    _require_batch_argument(dynamic_batch)
    if path.is_dir():
        raise ConfigError(f"hbm={str(hbm)!r} is a folder; give the path of a file, such as {path / 'model.hbm'}")
    if isinstance(balance_factor, bool) or not 0 <= balance_factor <= 100:
        raise ConfigError(f"balance_factor={balance_factor!r}; expected a number in 0..100")
    require_converted(module, "compile_model")
    record = partial(record_model, module, layouts=(input_layout or "NCHW", output_layout), doc=NOTE)
    exported = record(example_inputs)
    _require_source_per_input(input_source, exported.input_names)
    if not _has_integers(exported.proto):
        raise ModelError("compile_model: nothing in this traced module computes on integers; trace a converted model")
    note = path_note(module, example_inputs, exported, record)
    if note:
        _LOG.warning("compile_model: %s", note)
    exported, reason = _with_free_batch(module, example_inputs, exported, record, level, dynamic_batch)
    details = {
        "march": target.value,
        "name": name or path.stem,
        "opt": level,
        "input_source": input_source,
        "balance_factor": balance_factor,
        "extra_args": list(extra_args or ()),
        "layouts": [input_layout or "NCHW", output_layout],
        "path": note,
        "fixed_batch": reason,
    }
    _write(path, exported, details, debug)
    _LOG.info("compile_model: %s written, %d nodes", path.name, len(exported.proto.graph.node))
    with skipping() as skipped:
        problems = find_problems(module, example_inputs, target)
    for text in skipped_texts(skipped):
        _LOG.warning("compile_model: %s", text)
    for problem in problems:
        _LOG.warning("compile_model: the file runs in ONNX Runtime, but not on %s: %s", target.value, problem)
    return len(problems)


def _with_free_batch(
    module: nn.Module,
    example_inputs: Any,
    static: Exported,
    record: Callable[[Any], Exported],
    level: int,
    dynamic_batch: bool | str | Sequence[str],
) -> tuple[Exported, str]:
    """The model with a free batch size, or as it is and the reason."""
    if dynamic_batch is False:
        return static, "dynamic_batch=False"
    wanted = None if dynamic_batch is True or isinstance(dynamic_batch, str) else list(dynamic_batch)
    try:
        return free_batch(static, BatchInputs.of(module, example_inputs, wanted), record, level), ""
    except UnsupportedOpError as error:
        if dynamic_batch != "auto":
            raise UnsupportedOpError(
                f"dynamic_batch={dynamic_batch!r}: {error}; change that op, or pass dynamic_batch=False for a file "
                "of one batch size"
            ) from error
        _LOG.info("compile_model: the batch size stays that of the example inputs: %s", error)
        return static, str(error)


@dataclass(frozen=True)
class CompiledModel:
    """A compiled model, to be called like the module that it was made from.

    Attributes:
        session: the ONNX Runtime session.
        metadata: names, output structure, scales, ops, versions, settings.
    """

    session: Any
    metadata: dict[str, Any]

    @property
    def scales(self) -> dict[str, Any]:
        """Op call -> {"dtype", "scale"} of the codes that it gives."""
        found: dict[str, Any] = self.metadata["scales"]
        return found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run on torch tensors or numpy arrays of the example inputs' shapes, the batch size apart where it is free.

        Tensors come back, arrays for arrays.

        Raises:
            DataError: another number of inputs, or other shapes or dtypes.
        """
        nested = _tensors_of((args, kwargs))
        tensors = flat_tensors(*nested)
        self._require_shapes(tensors)
        results = run_session(self.session, self.metadata["inputs"], tensors, self.metadata["outputs"])
        is_numpy = not any(isinstance(leaf, Tensor) for leaf in _leaves((args, kwargs)))
        values = [r.numpy() for r in results] if is_numpy else results
        return rebuild_output(self.metadata["output_structure"], values)

    def _require_shapes(self, tensors: list[Tensor]) -> None:
        wanted = self.metadata["input_shapes"]
        got = [[str(t.dtype)[6:], *t.shape] for t in tensors]
        if not _fits(wanted, got):
            raise DataError(
                f"the compiled model takes inputs {wanted} (dtype and shape), got {got}; {self._shape_rule()}"
            )

    def _shape_rule(self) -> str:
        """Why the shapes are as they are, and what to do for others."""
        others = "the other sizes are fixed by the example inputs of compile_model: compile again for other ones"
        if any(BATCH in shape for shape in self.metadata["input_shapes"]):
            return f"{BATCH} may be any number, the same wherever it stands; {others}"
        reason = self.metadata["fixed_batch"]
        return (
            "shapes are fixed by the example inputs of compile_model: compile again for other ones. The batch size is "
            f"fixed: {reason}; compile_model(..., dynamic_batch=True) frees it where it can be"
        )


def _fits(wanted: list[list[Any]], got: list[list[Any]]) -> bool:
    """Whether dtypes and shapes are those wanted, with one batch size for all."""
    if [len(shape) for shape in wanted] != [len(shape) for shape in got]:
        return False
    pairs = [(w, g) for one, other in zip(wanted, got, strict=True) for w, g in zip(one, other, strict=True)]
    sizes = {size for want, size in pairs if want == BATCH}
    return len(sizes) <= 1 and all(want in (BATCH, size) for want, size in pairs)


def load_compiled(path: str | Path) -> CompiledModel:
    """A compiled model, run by ONNX Runtime on the CPU.

    Where a probe finds its uint8 kernels exact, products read their activations as uint8 (code + 128): the same codes,
    several times faster on x86 CPUs. The file itself has int8 codes.

    Args:
        path: what compile_model wrote: a `.onnx` file or an archive.

    Raises:
        ConfigError: there is no such file, or compile_model did not write it.
    """
    require_onnx()
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{path}: there is no such file; write it with compile_model")
    data = file.read_bytes()
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if "model.onnx" not in archive.namelist():
                raise ConfigError(f"{path}: this archive has no model.onnx; compile_model did not write it")
            data = archive.read("model.onnx")
    proto = _parsed(data, path)
    metadata = _metadata_of(proto, path)
    if unsigned_kernels_are_exact():
        proto = with_unsigned_activations(proto)
    return CompiledModel(make_session(proto, metadata["opt"]), metadata)


def _parsed(data: bytes, path: Any) -> Any:
    import onnx

    try:
        proto = onnx.load_model_from_string(data)
    except Exception as error:
        raise ConfigError(
            f"{path}: neither an archive nor an ONNX model ({error}); compile_model did not write it"
        ) from error
    if not proto.HasField("graph"):  # some bytes parse as an empty model
        raise ConfigError(f"{path}: neither an archive nor an ONNX model; compile_model did not write it")
    return proto


def _metadata_of(proto: Any, path: Any) -> dict[str, Any]:
    for prop in proto.metadata_props:
        if prop.key == _KEY:
            found: dict[str, Any] = json.loads(prop.value)
            return found
    raise ConfigError(f"{path}: an ONNX model without our metadata; compile_model did not write it")


def _write(path: Path, exported: Exported, details: dict[str, Any], debug: bool) -> None:
    import onnx

    scales = {mark.name: _scale_of(mark) for mark in exported.marks if mark.scale is not None}
    ops = [_op_of(mark, debug) for mark in exported.marks]
    inputs = [
        [_dtype_name(i), *[d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim]]
        for i in exported.proto.graph.input
    ]
    metadata = {
        **details,
        "inputs": exported.input_names,
        "input_shapes": inputs,
        "outputs": exported.output_names,
        "output_structure": exported.output_spec,
        "scales": scales,
        "ops": ops,
        "versions": _versions(),
        "integer_kernels_are_exact_here": integer_kernels_are_exact(),
        "note": NOTE,
    }
    exported.proto.graph.name = details["name"]
    onnx.helper.set_model_props(exported.proto, {_KEY: json.dumps(metadata, sort_keys=True)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        partial = Path(folder) / path.name
        if path.suffix == ".onnx":
            partial.write_bytes(exported.proto.SerializeToString())
        else:
            _write_archive(partial, exported.proto, metadata)
        partial.replace(path)


def _write_archive(path: Path, proto: Any, metadata: dict[str, Any]) -> None:
    parts = {"scales": metadata["scales"], "ops": metadata["ops"], "versions": metadata["versions"]}
    settings = {key: value for key, value in metadata.items() if key not in parts}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.onnx", proto.SerializeToString())
        for name, content in {**parts, "settings": settings}.items():
            archive.writestr(f"{name}.json", json.dumps(content, indent=1, sort_keys=True))


def _scale_of(mark: OpMark) -> dict[str, Any]:
    assert mark.scale is not None
    return {"dtype": mark.qdtype, "scale": mark.scale.reshape(-1).tolist() if mark.scale.dim() else float(mark.scale)}


def _op_of(mark: OpMark, debug: bool) -> dict[str, Any]:
    fields = {"name": mark.name, "op": mark.op_name, "type": mark.kind, "value": mark.value}
    return {**fields, "source": mark.source} if debug else fields


def _dtype_name(info: Any) -> str:
    import onnx

    return str(onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type))


def _versions() -> dict[str, str]:
    import onnx
    import onnxruntime

    return {"torch": str(torch.__version__), "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}


def _has_integers(proto: Any) -> bool:
    def gives_codes(node: Any) -> bool:
        return node.op_type == "Cast" and node.attribute[0].i in (3, 5)

    return any(node.op_type == "QLinearConv" or gives_codes(node) for node in proto.graph.node)


def _require_arguments(input_source: Any, input_layout: Any, output_layout: Any) -> None:
    sources = _sources_of(input_source)
    if not sources or any(source not in _SOURCES for source in sources):
        raise ConfigError(f"input_source={input_source!r}; expected {', '.join(_SOURCES)}, or one per input")
    for name, layout in (("input_layout", input_layout), ("output_layout", output_layout)):
        if layout not in _LAYOUTS:
            raise ConfigError(f"{name}={layout!r}; expected 'NCHW' or 'NHWC'")


def _require_batch_argument(dynamic_batch: Any) -> None:
    is_names = isinstance(dynamic_batch, (list, tuple)) and all(isinstance(name, str) for name in dynamic_batch)
    if not isinstance(dynamic_batch, bool) and dynamic_batch != "auto" and not (is_names and dynamic_batch):
        raise ConfigError(f"dynamic_batch={dynamic_batch!r}; expected True, False, 'auto' or a list of input names")


def _sources_of(input_source: Any) -> list[Any]:
    """One source, or those of all inputs; none where the argument is neither."""
    if isinstance(input_source, dict):
        return list(input_source.values())
    return list(input_source) if isinstance(input_source, (list, tuple)) else [input_source]


def _require_source_per_input(input_source: Any, names: list[str]) -> None:
    if isinstance(input_source, (dict, list, tuple)) and len(input_source) != len(names):
        raise ConfigError(
            f"input_source={input_source!r}: {len(input_source)} sources for the {len(names)} inputs "
            f"{', '.join(names)}; give one for each, or one string for all"
        )


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, (tuple, list)):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]


def _tensors_of(value: Any) -> Any:
    """Numpy arrays as tensors."""
    if isinstance(value, dict):
        return {key: _tensors_of(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_tensors_of(item) for item in value)
    return torch.as_tensor(value) if hasattr(value, "__array__") and not isinstance(value, Tensor) else value
