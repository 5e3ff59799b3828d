"""Where weights come from: one typed record, so that "no labels were used" can be checked."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from maskwright.data.trust.artefacts import Damage, parse_json
from maskwright.errors import MaskwrightError

NO_LABELS = "none"
"""`Provenance.labels_seen` of weights whose training read no human label."""


@dataclass(frozen=True)
class Provenance:
    """What a set of weights is and what it saw.

    Attributes:
        architecture: timm name of the network without a tag ("vit_small_patch14_dinov2").
        source: where the weights were found ("hub: timm/...", "file: dino.pth", "package: ...", "random").
        license: SPDX name, or "unknown".
        labels_seen: the labels that training the weights read: "none", "ImageNet-1k classes", "unknown", ...
        sha256: hash of the file they were read from, empty for random ones.
        mean: RGB mean that inputs in [0, 1] are centred by.
        std: RGB standard deviation that they are divided by.
        input_size: (height, width) of pretraining.
    """

    architecture: str
    source: str = "random"
    license: str = "unknown"
    labels_seen: str = "unknown"
    sha256: str = ""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    input_size: tuple[int, int] = (224, 224)

    def replace(self, **changes: Any) -> Provenance:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def summary(self) -> str:
        """One line for reports: architecture, source, labels seen and licence."""
        return (
            f"{self.architecture} ({self.source}); labels seen in pretraining: {self.labels_seen}; "
            f"licence: {self.license}"
        )

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values; `from_json` reads them back."""
        record = asdict(self)
        for name in ("mean", "std", "input_size"):
            record[name] = list(record[name])
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any] | str) -> Provenance:
        """Reads what `to_json` gives (or its text).

        Raises:
            MaskwrightError: fields are missing, unknown or of another type.
        """
        values = read_record(record, "provenance", {f.name for f in fields(cls)}, required={"architecture"})
        for name in ("architecture", "source", "license", "labels_seen", "sha256"):
            if name in values and not isinstance(values[name], str):
                raise MaskwrightError(f"provenance field {name} is {values[name]!r}", "text")
        for name, length in (("mean", 3), ("std", 3), ("input_size", 2)):
            if name in values:
                values[name] = read_numbers(values[name], length, f"provenance field {name}")
        if "input_size" in values:
            values["input_size"] = tuple(int(v) for v in values["input_size"])
        return cls(**values)


def read_record(
    record: Mapping[str, Any] | str,
    what: str,
    known: AbstractSet[str],
    required: AbstractSet[str] = frozenset(),
) -> dict[str, Any]:
    """Reads a JSON object whose fields are a subset of `known` and contain `required`.

    Args:
        record: the object, or its JSON text.
        what: its name in the error.
        known: all fields that may occur.
        required: fields that must occur.

    Raises:
        MaskwrightError: it is no such object.
    """
    if isinstance(record, str):
        try:
            record = parse_json(record)
        except Damage as error:
            raise MaskwrightError(f"{what} is not readable JSON ({error})", "a JSON object") from error
    if not isinstance(record, Mapping):
        raise MaskwrightError(f"{what} is {type(record).__name__}", "a JSON object")
    if extra := sorted(set(record) - known):
        raise MaskwrightError(f"{what} has unknown fields {', '.join(map(str, extra))}", ", ".join(sorted(known)))
    if missing := sorted(required - set(record)):
        raise MaskwrightError(f"{what} lacks {', '.join(missing)}", ", ".join(sorted(required)))
    return dict(record)


def read_numbers(value: Any, length: int, what: str) -> tuple[float, ...]:
    """Reads `length` finite numbers from a JSON list.

    Raises:
        MaskwrightError: it is no such list.
    """
    numbers = isinstance(value, list | tuple) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e9 for v in value
    )
    if not numbers or len(value) != length:
        raise MaskwrightError(f"{what} is {value!r}", f"{length} numbers")
    return tuple(value)
