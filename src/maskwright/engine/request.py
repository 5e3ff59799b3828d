"""What a run is asked to be, and what of it can be known before a file is opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskwright.data.trust.files import file_for
from maskwright.engine.inputs import check_inputs
from maskwright.engine.progress import Progress
from maskwright.engine.streams import Source, check_sources
from maskwright.errors import MaskwrightError

if TYPE_CHECKING:
    from maskwright.data.folders.folder import Dataset
    from maskwright.engine.contract import Method
    from maskwright.engine.needs import Terms


@dataclass(kw_only=True)
class RunRequest:
    """What a run is asked to be. All but the data, the method and the folder have defaults.

    Attributes:
        data: the images, of which masks that may not be read are hidden already.
        method: the class of the method.
        config: its options; its defaults if None.
        out: the run folder; `runs/METHOD-DATA` if None.
        sources: the data sets beside it, by name, as `open_sources` gives them.
        inputs: second networks and proposals: their places by name, as `named_inputs` gives them.
        split: name of the split that `data` was chosen by, for the record.
        labeled: name of the list that hid masks, for the record; None where none did.
        classes: number of classes or clusters; None: that of the class table.
        names: class names, above any class table; None: those of the tables.
        backbone: a timm name or one of the short names; `auto` takes the best that can be had.
        weights: a local checkpoint for it; a run or bundle of ours to go on from; `package`, or `random` for none.
        steps: optimiser steps of the main training stage; None: the method's own number.
        minutes: steps are chosen so that the run takes about so long; None: `steps` holds.
        most_steps: more are of no use in these minutes; None: as many as fit.
        as_it_stands: make the model of what the last checkpoint of an earlier run holds.
        seed: every random draw is a function of it.
        device: `auto`, `cpu` or `cuda`.
        resume: continue the run that lies in `out`.
        reason: why this method, where it was chosen for the user; empty where it was named.
        progress: how work shows itself.
    """

    data: Dataset
    method: type[Method]
    config: Any = None
    out: str | Path | None = None
    sources: Mapping[str, Source] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    split: str | None = None
    labeled: str | Path | None = None
    classes: int | None = None
    names: Sequence[str] | None = None
    backbone: str = "auto"
    weights: str | Path | None = None
    steps: int | None = None
    minutes: float | None = None
    most_steps: int | None = None
    as_it_stands: bool = False
    seed: int = 0
    device: str = "auto"
    resume: bool = False
    reason: str = ""
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        if self.config is None:
            self.config = self.method.Config()

    def check(self) -> None:
        """Looks at what can be known before a file is opened.

        Raises:
            MaskwrightError: a number out of its range, labels that the method needs and that are not there, data sets
                or inputs that it needs or does not take, or two words on the encoder.
        """
        if not 0 <= self.seed < 2**63:
            raise MaskwrightError(f"--seed {self.seed}", "a whole number from 0 to 2**63 - 1")
        if self.steps is not None and self.steps < 1:
            raise MaskwrightError(f"--steps {self.steps}", "at least 1")
        if self.minutes is not None:
            self._check_minutes(self.minutes)
        self._check_labels()
        check_inputs(self.method, self.terms.inputs, self.inputs)
        wanted = self.terms.backbone
        if wanted and self.backbone not in ("auto", wanted):
            raise MaskwrightError(f"--backbone {self.backbone} and --set encoder={wanted}", "one of the two")

    def _check_minutes(self, minutes: float) -> None:
        if not 0 < minutes < 1e6:
            raise MaskwrightError(f"--minutes {minutes}", "a number above 0")
        if self.steps is not None:
            raise MaskwrightError(f"--steps {self.steps} and --minutes {minutes:g}", "one of the two", "leave one out")
        if not self.terms.steps:
            raise MaskwrightError(
                f"--minutes and {self.method.name}, which trains nothing step by step", "a method that trains",
                "leave it out",
            )  # fmt: skip

    def _check_labels(self) -> None:
        method, terms, present = self.method, self.terms, self.data.labels_present()
        check_sources(method, terms.taken, self.sources)
        for need in sorted(terms.needs):
            if need in present and not present[need]:
                raise MaskwrightError(
                    f"{method.name} needs {need} and {self.data.root} has none",
                    f"at least one image with {need}",
                    f"`maskwright doctor {self.data.root}` says what it found, `maskwright methods` lists what needs "
                    "less",
                )
        if self.names is not None and terms.classes_from == "clusters":
            raise MaskwrightError(
                f"--names and {method.name}, whose clusters have no names",
                "a method whose classes are those of labels",
                f"leave --names out; --classes {len(self.names)} makes as many clusters",
            )
        tables = (self.data.classes, *(self.sources[name].data.classes for name in self.labelled))
        if "names" in terms.needs and self.names is None and not any(tables):
            raise MaskwrightError(
                f"{method.name} needs names of the classes and {self.data.root} has none",
                f"{self.data.root / 'classes.txt'}, or --names",
                "--names LIST_OR_FILE: names with commas between, or a file with one a line",
            )

    @property
    def terms(self) -> Terms:
        """On what terms the run can be."""
        return self.method.terms(self.config, len(self.data))

    @property
    def labelled(self) -> list[str]:
        """Names of the given data sets beside the run's own whose masks are learned from."""
        taken = self.terms.taken
        return [name for name in self.sources if "masks" in taken[name].labels]

    @property
    def folder(self) -> Path:
        """The run folder."""
        if self.out is not None:
            return Path(self.out)
        return file_for(Path("runs"), f"{self.method.name}-{Path(self.data.root).resolve().name}", "")

    @property
    def backbone_name(self) -> str:
        """The backbone's name: what the method's options want, or what was asked for."""
        return self.terms.backbone or self.backbone
