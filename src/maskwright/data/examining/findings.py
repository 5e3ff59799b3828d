"""What the doctor and the verbs say: findings with their repairs, as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from maskwright.errors import MaskwrightError, shown

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
EXAMPLES = 5
"""Names shown with a finding."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a folder, or worth knowing.

    Attributes:
        kind: short name, stable for scripts ("size-mismatch").
        severity: "error": training or evaluation would fail or be wrong; "warning": probably not meant;
            "note".
        count: how many files, rows or classes are concerned.
        examples: the first few of them.
        message: what was found.
        repair: what mends it; empty where nothing needs mending.
    """

    kind: str
    severity: Severity
    count: int
    examples: tuple[str, ...]
    message: str
    repair: str = ""

    def error(self) -> MaskwrightError:
        """The finding as the error of a verb that cannot go on: the same words, with the first of its examples."""
        named = f" ({', '.join(self.examples[:3])}{', ...' if self.count > 3 else ''})" if self.examples else ""
        return MaskwrightError(f"{self.message}{named}", "", self.repair)

    def said(self) -> str:
        """The finding as a sentence that a verb says."""
        return f"{self.message}; {self.repair}" if self.repair else self.message

    def to_json(self) -> dict[str, Any]:
        """The finding as JSON values."""
        return {
            "kind": self.kind,
            "severity": self.severity,
            "count": self.count,
            "examples": list(self.examples),
            "message": self.message,
            "repair": self.repair,
        }


def some(names: Sequence[object], most: int = 3) -> str:
    """The first few of some names or numbers, as a sentence lists them."""
    return ", ".join(map(str, names[:most])) + (", ..." if len(names) > most else "")


def finding(kind: str, severity: Severity, names: Sequence[str], message: str, repair: str = "") -> Finding:
    """A finding about the things called `names`, the first few of which are its examples."""
    return Finding(kind, severity, len(names), tuple(names[:EXAMPLES]), message, repair)


@dataclass(frozen=True)
class Diagnosis:
    """All that the doctor found in a folder.

    Attributes:
        root: the folder.
        labels: what there is: `images`, `masks`, `tags`, `captions` (counts of images), `classes` (names or
            None), `splits` ({name: images}), `sizes` ({"smallest": [h, w], "median": [h, w], "largest": [h,
            w]} or None), `histogram` ([{"id", "name", "pixels", "share", "images"}], shares of the pixels
            that are not ignored), `ignored` (share of all mask pixels).
        findings: errors first.
    """

    root: str
    labels: dict[str, Any]
    findings: tuple[Finding, ...] = field(default=())

    @property
    def healthy(self) -> bool:
        """Whether there is no error among the findings."""
        return all(f.severity != "error" for f in self.findings)

    def of_kind(self, kind: str) -> list[Finding]:
        """The findings of one kind."""
        return [f for f in self.findings if f.kind == kind]

    def to_json(self) -> dict[str, Any]:
        """The diagnosis as JSON values."""
        return {
            "root": self.root,
            "healthy": self.healthy,
            "labels": self.labels,
            "findings": [f.to_json() for f in self.findings],
        }

    def text(self) -> str:
        """The diagnosis for people: labels, class histogram, findings with their repairs."""
        return "\n".join([*self._label_lines(), *self._histogram_lines(), "", *self._finding_lines()])

    def _label_lines(self) -> list[str]:
        labels = self.labels
        lines = [f"{self.root}", f"  images    {labels['images']}"]
        for kind in ("masks", "tags", "captions"):
            lines.append(f"  {kind:<9} {labels[kind] or 'none'}")
        classes = labels.get("classes")
        lines.append(f"  classes   {len(classes) if classes else 'no classes.txt'}")
        if labels.get("splits"):
            lines.append("  splits    " + ", ".join(f"{name} ({n})" for name, n in labels["splits"].items()))
        sizes = labels.get("sizes")
        if sizes:
            shown = {which: "x".join(map(str, size)) for which, size in sizes.items()}
            if shown["smallest"] == shown["largest"]:
                lines.append(f"  size      {shown['median']} (height x width)")
            else:
                lines.append(
                    f"  sizes     {shown['smallest']} to {shown['largest']}, median {shown['median']} (height x width)"
                )
        return lines

    def _histogram_lines(self) -> list[str]:
        histogram = self.labels.get("histogram") or []
        if not histogram:
            return []
        width = max(len(str(row["name"])) for row in histogram)
        top = max(row["share"] for row in histogram) or 1.0
        lines = ["", "  class histogram: share of labelled pixels, images with the class"]
        for row in histogram[:60]:
            bar = "#" * round(24 * row["share"] / top)
            lines.append(
                f"  {row['id']:>5} {row['name']:<{width}} {row['share']:>7.2%} {row['images']:>6}  {bar}".rstrip()
            )
        if len(histogram) > 60:
            lines.append(f"        ... and {len(histogram) - 60} more (--json lists all)")
        lines.append(f"        ignored: {self.labels['ignored']:.2%} of all mask pixels")
        return lines

    def _finding_lines(self) -> list[str]:
        if not self.findings:
            return ["Nothing is wrong with it."]
        lines: list[str] = []
        for f in self.findings:
            lines.append(shown(f"{f.severity}: {f.message} [{f.kind}]"))
            if f.examples:
                more = ", ..." if f.count > len(f.examples) == EXAMPLES else ""
                lines.append(shown(f"    {', '.join(f.examples)}{more}"))
            if f.repair:
                lines.append(shown(f"    repair: {f.repair}"))
        counts = {s: sum(f.severity == s for f in self.findings) for s in SEVERITIES}
        said = ", ".join(f"{n} {s}{'s' if n != 1 else ''}" for s, n in counts.items() if n)
        return [*lines, "", said]
