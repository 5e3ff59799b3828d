"""Data sets and models from their places."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskwright.errors import MaskwrightError

if TYPE_CHECKING:
    from maskwright.data.folders.folder import Dataset
    from maskwright.predict.model import Model


def open_folder(
    path: str | Path,
    *,
    labels: str | None = None,
    void: str | int | Iterable[int] | None = None,
    range: str | Iterable[float] | None = None,
) -> Dataset:
    """Opens a dataset folder, or an official benchmark layout written as `layout:path` (`voc:VOCdevkit/VOC2012`).

    Args:
        path: the folder.
        labels: what the values of its masks mean, a name of `maskwright.data.examining.reading.LABELS`; None: auto.
        void: the value, or values, of masks that mean no class, or "none"; None: 255 (16 bits: 65535).
        range: (low, high), the stored values of images that become black and white; None: by type, or measured.

    Raises:
        MaskwrightError: when there is no such folder, no image in it, no such layout, or an option is out of range.
    """
    from maskwright.data.examining.reading import Reading
    from maskwright.data.layouts import open_data

    return open_data(str(path), Reading.parse(labels, void, range))


def load(path: str | Path, device: str = "cpu") -> Model:
    """Loads a saved model.

    Args:
        path: `model.safetensors` of a run, the run's folder, or "hf:owner/name" (or "hf:owner/name@revision") on the
            model hub.
        device: where it will run.

    Raises:
        MaskwrightError: when the file is missing, damaged or not a bundle of ours, or the hub does not give it.
    """
    from maskwright.engine.records import MODEL, RunFolder
    from maskwright.predict.model import load as load_model

    if str(path).startswith("hf:"):
        from maskwright.predict.sharing import hub_bundle

        return load_model(hub_bundle(str(path)), device=device)
    path = Path(path)
    if path.is_dir() and not (path / MODEL).exists() and (standing := RunFolder.standing(path)):
        raise MaskwrightError(
            f"{path} holds a run without a model: it {standing}",
            "a run that is finished",
            f"repeat its command, which stands in its run.json, with --resume, or maskwright finish {path}",
        )
    return load_model(path / MODEL if path.is_dir() else path, device=device)


def weights_of(model: str | Path) -> str | None:
    """The towers that the run of a model trained, or else the weights that it was given, where its folder still says so
    and they still lie there.

    Args:
        model: `model.safetensors` of a run, or the run's folder.
    """
    from maskwright.engine.config_file import CONFIG, said_in
    from maskwright.models.towers.groupvit.files import TOWERS, holds_group_pair

    folder = Path(model) if Path(model).is_dir() else Path(model).parent
    if holds_group_pair(folder / TOWERS):
        return str(folder / TOWERS)
    said = said_in(folder / CONFIG, "weights") if (folder / CONFIG).is_file() else None
    return said if isinstance(said, str) and Path(said).exists() else None


def opened(data: str | Path | Dataset, labels: Any = None, void: Any = None, range: Any = None) -> Dataset:
    """The data set of a path, or one that was opened before, with what is now said of its values, if anything is."""
    from maskwright.data.examining.reading import Reading

    if isinstance(data, str | Path):
        return open_folder(data, labels=labels, void=void, range=range)
    said = Reading.parse(labels, void, range)
    return data if said == Reading() else data.with_reading(said)
