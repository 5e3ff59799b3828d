"""What a method is given to work with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from maskwright.data.training.proposals import Proposals
from maskwright.engine.cache import FeatureCache
from maskwright.engine.checkpoint import CHECKPOINT
from maskwright.engine.ledgers import TARGET, Ledgers
from maskwright.engine.loop import Training, fit
from maskwright.engine.progress import Progress
from maskwright.engine.records import RunFolder
from maskwright.engine.resuming import restore
from maskwright.engine.timing import Timed, Timing, time_steps
from maskwright.models.parts.table import check_modules

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from maskwright.data.folders.folder import Dataset
    from maskwright.data.masking.classes import ClassTable
    from maskwright.engine.inputs import Input
    from maskwright.engine.start import Start
    from maskwright.models.backbones.build import Backbone
    from maskwright.models.onnx_network import OnnxNetwork
    from maskwright.models.segmenter import Segmenter


@dataclass
class Context:
    """What a method is given.

    Attributes:
        data: the images of the chosen split; masks beyond `--labeled` are hidden. Images that cannot be read are gone.
        table: the classes or clusters to produce, with names and colours.
        seed: the run's seed.
        steps: `--steps`, or None for the method's own number.
        fabric: device, precision, processes.
        run: the run's folder and record.
        cache: features on disk.
        backbone: the network that sees; frozen unless a method trains it.
        sources: the data sets beside the run's own, by the names that `--source` gave; what the method's contract does
            not let it read of their labels is hidden.
        inputs: second networks and proposals, by the names that `--input` gave; `input` gives the thing itself.
        start: the model that the run goes on from, where `--weights` gave one; it is the input `weights` too.
        progress: how work shows itself.
        notes: sentences for the report.
        workers: threads that read ahead while a stage trains; None: as `engine.ahead.read_ahead` says.
        timing: how long the run may take, and what is told of it.
    """

    data: Dataset
    table: ClassTable
    seed: int
    steps: int | None
    fabric: Fabric
    run: RunFolder
    cache: FeatureCache
    backbone: Backbone
    sources: Mapping[str, Dataset] = field(default_factory=dict)
    inputs: Mapping[str, Input] = field(default_factory=dict)
    start: Start | None = None
    progress: Progress = field(default_factory=Progress)
    notes: list[str] = field(default_factory=list)
    workers: int | None = None
    timing: Timing = field(default_factory=Timing)

    @property
    def streams(self) -> dict[str, Dataset]:
        """All data sets by name: `target`, which is `data`, and those of `sources`."""
        return {TARGET: self.data, **self.sources}

    @property
    def ledgers(self) -> Ledgers:
        """Which labels were read, by stream."""
        return Ledgers.of(self.streams)

    def data_of(self, name: str) -> Dataset:
        """The data set of one name, `target` or one of `--source`.

        Raises:
            KeyError: there is none; a method that asks for it declares it as required (`Method.streams`).
        """
        streams = self.streams
        if name not in streams:
            raise KeyError(f"no data set called {name!r} in this run, only {', '.join(streams)}")
        return streams[name]

    def input(self, name: str) -> Segmenter | Backbone | OnnxNetwork | Proposals:
        """A second network, on the device, in evaluation mode and without gradients; one of an ONNX file; or a store of
        proposals.

        Raises:
            KeyError: there is none; a method that asks for it declares it as required (`Method.inputs`).
        """
        if name not in self.inputs:
            raise KeyError(f"no input called {name!r} in this run, only {', '.join(self.inputs) or 'none'}")
        thing = self.inputs[name].thing
        return thing if isinstance(thing, Proposals) else thing.to(self.device)

    @property
    def classes(self) -> int:
        """How many classes or clusters to produce."""
        return len(self.table.names)

    @property
    def device(self) -> torch.device:
        """Where networks run."""
        return self.fabric.device

    def fit(self, training: Training, name: str, folder: Path, steps: int, **options: Any) -> None:
        """Trains a stage through the one loop; which labels it read is saved with its checkpoints.

        Raises:
            MaskwrightError: before the first step, for a part that a saved model could not be loaded with again.
            Timed: instead of training, where the pace alone is asked for.
        """
        check_modules(training.modules.values())
        timing = self.timing
        if timing.pace is not None:
            time_steps(training, self, name, timing.pace.enough)
            raise Timed
        training.extra = {**training.extra, "ledger": self.ledgers}
        if timing.as_it_stands:
            self.run.kept = (name, restore(training, folder / CHECKPOINT, self.progress), steps)
        else:
            after = timing.forecast(name, steps, self.progress.say).after
            fit(training, self, name, folder, steps, **({"after": after} | options))
        timing.arrived(name, self.run.kept)

    def note(self, sentence: str, *, said: bool = False) -> None:
        """Says a sentence, unless it was `said` already, and adds it to the report, once."""
        if sentence not in self.notes:
            if not said:
                self.progress.say(sentence)
            self.notes.append(sentence)
            self.run.save(notes=self.notes)
