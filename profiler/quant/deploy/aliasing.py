"""Which graph value each tensor of a running forward has, views and in-place writes included."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from profiler.errors import UnsupportedOpError
from profiler.quant.deploy.graph import GraphBuilder, Value, constant

_ViewKey = tuple[int, tuple[int, ...], tuple[int, ...]]


@dataclass
class _Storage:
    """Memory that several tensors look at: the values of those that are up to date.

    Attributes:
        keeper: keeps the memory alive, so that its address stays its own.
        views: values of tensors that look at the newest contents; None where nobody can know them.
        dense: a tensor that covers all of it, and its value.
        flat: all of it as one row, if somebody asked.
    """

    keeper: Tensor
    views: dict[_ViewKey, Value | None] = field(default_factory=dict)
    dense: tuple[Tensor, Value] | None = None
    flat: Value | None = None


class TensorValues:
    """Values of tensors, by the memory that they look at: a tensor object is no identity, `as_subclass` makes new ones.

    Shapes are static, so any view can be read as a gather from its memory, and any write through one is a scatter.
    """

    def __init__(self, builder: GraphBuilder) -> None:
        self.builder = builder
        self._storages: dict[int, _Storage] = {}

    def is_traced(self, tensor: Tensor) -> bool:
        """Whether the tensor depends on the model's inputs."""
        return tensor.layout == torch.strided and _address(tensor) in self._storages

    def value(self, tensor: Tensor) -> Value:
        """Value of a tensor: of the graph, or a constant.

        Raises:
            UnsupportedOpError: the tensor is a result that has no ONNX form, or reads another dtype's bits.
        """
        storage = self._storages.get(_address(tensor))
        if storage is None:
            return constant(tensor)
        key = _view_key(tensor)
        if key not in storage.views:
            positions = constant(_positions(tensor))
            made = self.builder.node("Gather", self._flat(storage), positions, axis=0)
            storage.views[key] = replace(made, shape=tuple(tensor.shape))
        value = storage.views[key]
        if value is None:
            raise UnsupportedOpError("a result without an ONNX form (indices of a pool, statistics of a norm) is used")
        if value.dtype != tensor.dtype:
            raise UnsupportedOpError(f"{value.dtype} is read as {tensor.dtype} bit by bit, which cannot be exported")
        return value

    def is_formless(self, tensor: Tensor) -> bool:
        """Whether the tensor is a result that has no ONNX form."""
        storage = self._storages.get(_address(tensor))
        return storage is not None and storage.dense is None and storage.flat is None

    def bind(self, tensor: Tensor, value: Value | None) -> None:
        """Say which value a tensor has: the result of an op, which may look at the memory of another tensor."""
        if tensor.numel() == 0 or tensor.layout != torch.strided:
            return
        if value is not None:
            value = replace(self.builder.cast(value, tensor.dtype), shape=tuple(tensor.shape))
        storage = self._storages.get(_address(tensor))
        if storage is None:
            storage = self._storages[_address(tensor)] = _Storage(tensor.detach())
            self._set_contents(storage, tensor, value)
        storage.views[_view_key(tensor)] = value

    def adopt(self, tensor: Tensor) -> None:
        """Before an untraced tensor is written to: its present memory as a constant."""
        if tensor.numel() == 0 or self.is_traced(tensor):
            return
        whole = _whole(tensor)
        storage = _Storage(tensor.detach(), flat=constant(whole))
        self._storages[_address(tensor)] = storage

    def write(self, tensor: Tensor, value: Value) -> None:
        """The tensor's elements were overwritten; every other view of its memory is out of date."""
        if tensor.numel() == 0:
            return
        storage = self._storages[_address(tensor)]
        value = replace(self.builder.cast(value, tensor.dtype), shape=tuple(tensor.shape))
        if _is_dense(tensor):
            storage.dense, storage.flat = (tensor.detach(), value), None
        else:
            row = self.builder.node("Reshape", value, constant([-1]))
            positions = constant(_positions(tensor).reshape(-1))
            storage.flat = self.builder.node("ScatterElements", self._flat(storage), positions, row, axis=0)
            storage.dense = None
        storage.views = {_view_key(tensor): value}

    def _set_contents(self, storage: _Storage, tensor: Tensor, value: Value | None) -> None:
        if value is None:
            return
        if _is_dense(tensor):
            storage.dense = (tensor.detach(), value)
            return
        zeros = constant(torch.zeros(_whole(tensor).shape, dtype=tensor.dtype))
        row = self.builder.node("Reshape", value, constant([-1]))
        positions = constant(_positions(tensor).reshape(-1))
        storage.flat = self.builder.node("ScatterElements", zeros, positions, row, axis=0)

    def _flat(self, storage: _Storage) -> Value:
        if storage.flat is None:
            if storage.dense is None:
                raise UnsupportedOpError("a result without an ONNX form is read through a view")
            tensor, value = storage.dense
            order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
            if order != list(range(tensor.dim())):
                value = self.builder.node("Transpose", value, perm=order)
            storage.flat = self.builder.node("Reshape", value, constant([-1]))
        return storage.flat


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _view_key(tensor: Tensor) -> _ViewKey:
    strides = tuple(0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return int(tensor.storage_offset()), tuple(tensor.shape), strides


def _whole(tensor: Tensor) -> Any:
    """All elements of the tensor's memory as one row."""
    count = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.detach().as_strided((count,), (1,), 0)


def _is_dense(tensor: Tensor) -> bool:
    """Whether the tensor covers its memory, each element once."""
    if tensor.numel() * tensor.element_size() != tensor.untyped_storage().nbytes():
        return False
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size if size != 1 else 1
    return True


def _positions(tensor: Tensor) -> Tensor:
    """Position in its memory of each element of a tensor."""
    count = _whole(tensor).shape[0]
    return torch.arange(count).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
