"""Heads that hold the decoder before them, because they need the encoder's maps too: how they are told and rebuilt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from torch import Tensor

from maskwright.errors import MaskwrightError
from maskwright.models.parts.part import Part, check_argument
from maskwright.models.parts.table import build_part


class BehindDecoder(Part, ABC):
    """A part made of a decoder, whole numbers and one switch, kept as attributes under their names.

    Attributes:
        decoder: the part inside, from the encoder's maps to one.
        numbers: names of the numbers, in the constructor's order.
        may_be_0: those of them that need not be above 0.
        switch: name of the last argument, true or false.
    """

    numbers: ClassVar[tuple[str, ...]] = ()
    may_be_0: ClassVar[tuple[str, ...]] = ()
    switch: ClassVar[str] = ""
    decoder: Part

    def spec(self) -> dict[str, Any]:
        """The decoder's spec and the arguments."""
        given = {name: getattr(self, name) for name in (*self.numbers, self.switch)}
        return {"kind": type(self).__name__, "decoder": self.decoder.spec(), **given}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Builds the decoder inside, and this behind it.

        Raises:
            MaskwrightError: an incomplete spec, numbers out of range, and as the decoder does.
        """
        given, names = {k: v for k, v in spec.items() if k not in ("kind", "decoder")}, (*cls.numbers, cls.switch)
        whole = set(given) == set(names) and "decoder" in spec
        if not whole or not all(type(given[n]) is int and given[n] >= (n not in cls.may_be_0) for n in cls.numbers):
            raise MaskwrightError(f"part {cls.__name__} is incomplete", f"decoder, {', '.join(names)}")
        for name, value in given.items():
            check_argument(cls.__name__, name, value)
        return cls.build(decoder=build_part(spec["decoder"]), **given)

    @abstractmethod
    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The encoder's maps, fine to coarse, to what the decoder's and they give together."""
