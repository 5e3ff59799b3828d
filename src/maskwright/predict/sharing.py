"""Handing a model on: a folder with its page, and the model hub."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskwright.data.trust.files import write_bytes
from maskwright.errors import MaskwrightError
from maskwright.models.bundle import save_bundle
from maskwright.predict.card import card, is_card

if TYPE_CHECKING:
    from maskwright.predict.model import Model

BUNDLE, PAGE = "model.safetensors", "README.md"
"""What the folder holds."""
HUB = "hf:"
"""What a name on the model hub begins with."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def save_pretrained(
    model: Model, folder: str | os.PathLike[str], license: str | None = None, place: str | None = None
) -> Path:
    """Writes a model and its page into a folder.

    Args:
        model: what to write.
        folder: made if missing; a model of ours in it and its page are replaced.
        license: SPDX name of the model's licence; that of the weights it began from if None.
        place: what the page says to load; the folder's name if None.

    Returns:
        The folder.

    Raises:
        MaskwrightError: a README.md of somebody else lies there, or the place cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise MaskwrightError(f"{folder} is a file", "a folder", "choose another")
    page = folder / PAGE
    if page.exists() and not is_card(page.read_text("utf-8", "replace")):
        raise MaskwrightError(f"{page} is not a model's page", "a folder without one", "choose another folder")
    save_bundle(folder / BUNDLE, model.segmenter, model.extra)
    write_bytes(page, card(model, place or folder.name, license).encode())
    return folder


def push_to_hub(model: Model, name: str, private: bool = False, license: str | None = None, message: str = "") -> str:
    """Uploads a model and its page to the model hub; the repository is made where there is none.

    Args:
        model: what to upload.
        name: "owner/name".
        private: whether a repository that is made is private.
        license: as for `save_pretrained`.
        message: of the commit.

    Returns:
        What `mw.load` takes to load it, "hf:owner/name".

    Raises:
        MaskwrightError: no such name, or the hub cannot be reached or refuses.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    from maskwright.models.backbones.weights import offline_asked

    name = _checked(name)
    if offline_asked():
        raise MaskwrightError("HF_HUB_OFFLINE is set", "a hub that may be asked", "unset it, or use save_pretrained")
    api: Any = huggingface_hub.HfApi(library_name="maskwright")
    with tempfile.TemporaryDirectory() as beside:
        folder = save_pretrained(model, Path(beside) / "model", license, HUB + name)
        try:
            api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=folder, commit_message=message or "Model by maskwright")
        except (HfHubHTTPError, OSError, ValueError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise MaskwrightError(
                f"the hub does not take {name} ({first})", "a hub that can be reached and a login that may write there",
                "log in with `hf auth login`",
            ) from error  # fmt: skip
    return HUB + name


def hub_bundle(place: str) -> Path:
    """The local copy of a model on the hub, fetched where the cache has none.

    Args:
        place: "hf:owner/name", or with a branch, tag or commit "hf:owner/name@revision".

    Raises:
        MaskwrightError: no such name, it is not in the cache and no hub can be reached, or the hub refuses.
    """
    from maskwright.models.backbones.weights import hub_file

    name, _, revision = place.removeprefix(HUB).partition("@")
    repair = "give a folder or a model.safetensors"
    return hub_file(_checked(name), BUNDLE, "model", repair, revision or None)


def _checked(name: str) -> str:
    name = name.removeprefix(HUB)
    if not _NAME.fullmatch(name):
        raise MaskwrightError(f"the name {name[:80]!r} on the hub", "owner/name", f"for example {HUB}you/plants")
    return name
