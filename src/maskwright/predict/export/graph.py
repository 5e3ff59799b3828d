"""ONNX nodes written as calls: `g("Add", a, b)` appends a node and gives the name of its output."""

from __future__ import annotations

from typing import Any

import numpy as np

OPSET = 18
"""Of ai.onnx: the first whose reductions all take their axes as an input."""


class Graph:
    """Nodes and constants in the order in which they were asked for.

    Args:
        prefix: of all names, so that parts of a file do not clash.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._held: dict[tuple[str, str, bytes], str] = {}

    def __call__(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Appends a node with one output.

        Args:
            kind: ONNX operator.
            inputs: names of values.
            output: name of its output; a new one if None.
            attributes: of the operator.

        Returns:
            The name of the output.
        """
        from onnx import helper

        name = output or f"{self.prefix}/{kind}_{len(self.nodes)}"
        node = helper.make_node(kind, list(inputs), [name], name=f"{self.prefix}/node_{len(self.nodes)}", **attributes)
        self.nodes.append(node)
        return name

    def constant(self, value: Any, dtype: type) -> str:
        """The name of a constant; equal ones are held once.

        Args:
            value: number, list or array.
            dtype: numpy's type.
        """
        from onnx import numpy_helper

        array: np.ndarray = np.asarray(value, dtype)
        key = (array.dtype.str, str(array.shape), array.tobytes())
        if key not in self._held:
            name = self._held[key] = f"{self.prefix}/constant_{len(self._held)}"
            self.initializers.append(numpy_helper.from_array(array, name))
        return self._held[key]

    def real(self, value: Any) -> str:
        """A float64 constant: sizes and weights are computed as Python and torch do it."""
        return self.constant(value, np.float64)

    def whole(self, value: Any) -> str:
        """An int64 constant."""
        return self.constant(value, np.int64)

    def to(self, x: str, dtype: type) -> str:
        """A value as another numpy type."""
        from onnx import helper

        return self("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def side(self, x: str, axis: int) -> str:
        """Length of one axis of `x`, int64 scalar."""
        return self("Gather", self("Shape", x), self.whole(axis))

    def list_of(self, *scalars: str) -> str:
        """int64 scalars as one vector."""
        return self("Concat", *(self("Unsqueeze", s, self.whole([0])) for s in scalars), axis=0)

    def range(self, count: str, dtype: type) -> str:
        """0 to count - 1 as a vector; `count` is an int64 scalar."""
        return self.to(self("Range", self.whole(0), count, self.whole(1)), dtype)

    def column(self, x: str) -> str:
        """(N,) to (N, 1)."""
        return self("Unsqueeze", x, self.whole([1]))
