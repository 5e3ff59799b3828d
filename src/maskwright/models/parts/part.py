"""What a saved segmenter is made of: modules that can be rebuilt from JSON values, their tensors saved beside.

Which of them a bundle may name stands in `models/parts/table.py`. A module that is never saved is an `nn.Module`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor, nn

from maskwright.errors import MaskwrightError

MAX_WIDTH = 65536
"""Channels, clusters or classes that a part may have at most; larger numbers in a file are damage or
malice."""
MAX_DEPTH = 64
"""Layers or parts that a part may have at most."""


class Part(nn.Module):
    """A module that can be rebuilt from JSON values: the arguments named in `fields`, kept as attributes."""

    fields: tuple[str, ...] = ()

    def spec(self) -> dict[str, Any]:
        """The part's kind and arguments as JSON values; tensors are not in it."""
        return {"kind": type(self).__name__, **{name: getattr(self, name) for name in self.fields}}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Builds the part with untrained tensors of the right shapes.

        Raises:
            MaskwrightError: arguments are missing, unknown or out of range.
        """
        arguments = {name: value for name, value in spec.items() if name != "kind"}
        if set(arguments) != set(cls.fields):
            raise MaskwrightError(
                f"part {cls.__name__} has the arguments {', '.join(map(str, sorted(arguments))) or 'none'}",
                ", ".join(cls.fields) or "none",
            )
        for name, value in arguments.items():
            check_argument(cls.__name__, name, value)
        try:
            return cls.build(**arguments)
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RuntimeError) as error:
            raise MaskwrightError(f"part {cls.__name__} cannot be built: {error}", "its own arguments") from error

    def check_tensors(self) -> None:
        """Looks at tensors that a file gave; parts for which not every value will do override it.

        Raises:
            ValueError: a value that the part cannot have.
        """

    @property
    def stands_on(self) -> str:
        """timm's name of the network that an encoder of another package's build is; empty where it is none."""
        return ""

    def backbone_tensors(self, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """An encoder's tensors under the names that the backbone `stands_on` has for them.

        Args:
            wanted: the backbone's own tensors.
        """
        return {}

    @classmethod
    def build(cls, **arguments: Any) -> Self:
        """Builds the part from checked arguments; parts whose constructor takes tensors override it."""
        return cls(**arguments)


def check_argument(part: str, name: str, value: Any) -> None:
    """Refuses numbers that no real part has, before anything is allocated.

    Raises:
        MaskwrightError: a number or a list is too large, or of no JSON type that parts use.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            check_argument(part, f"{name}.{key}", item)
    elif isinstance(value, list | tuple):
        if len(value) > MAX_DEPTH:
            raise MaskwrightError(f"{part} has {len(value)} {name}", f"at most {MAX_DEPTH}")
        for item in value:
            check_argument(part, name, item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if not -MAX_WIDTH <= value <= MAX_WIDTH:
            raise MaskwrightError(f"{part} has {name} {value}", f"at most {MAX_WIDTH}")
    elif value is not None and not isinstance(value, str | bool):
        raise MaskwrightError(f"{part} has {name} of type {type(value).__name__}", "a JSON value")
