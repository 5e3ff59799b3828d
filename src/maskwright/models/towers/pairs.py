"""Finds a pair of towers, image and text: its description and its tensors, by open_clip's names, from a hub, a file, a
folder, or none.

Formats of a file: open_clip's (`.pt`, `.bin`, `.safetensors`, also with a text tower of its own prefix, with
`state_dict` around it, with the prefixes of trainings), OpenAI's once it is no TorchScript archive, fp16 or fp32, and
transformers' `CLIPModel`. A folder holds `open_clip_config.json` and the file, as open_clip writes them to a hub, or
transformers' `config.json` and `model.safetensors`, with the files of its tokenizer. A repository of a model hub is
such a folder too (`clip:hf:OWNER/NAME`).
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskwright.errors import MaskwrightError, unknown
from maskwright.models.backbones.keymaps import unwrap_entry
from maskwright.models.backbones.weights import WeightsFile, hub_entry, hub_file, hub_weights, read_weights_file
from maskwright.models.towers.shape import CLIP, HUB_FILE, HUB_NAME, USUAL, USUAL_TAG, TowerShape

CONFIG = "open_clip_config.json"
THEIRS = "config.json"
"""The description as transformers writes it."""
FILES = (HUB_FILE, "open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin")
"""Tensors, open_clip's first; those behind are transformers' names."""
PICTURES = ("preprocessor_config.json", "processor_config.json")
"""What transformers writes of mean and standard deviation."""
TOKENS = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "sentencepiece.bpe.model", "spiece.model")
"""Files of which any says that a folder has a tokenizer of transformers."""
TOKEN_FILES = (*TOKENS, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
OPENAI_ONLY = "input_resolution"
"""A number that OpenAI's own files hold beside the tensors, and no other."""
INSTALL = "pip install 'maskwright[clip]'"
GIVE = "give both towers with --backbone clip:NAME --weights FILE"
"""What to do where no hub can be reached."""
GIVE_FOLDER = f"give both towers with --backbone {CLIP} --weights FOLDER"


def open_clip_module() -> Any:
    """open_clip, imported when it is first needed.

    Raises:
        MaskwrightError: it is not installed.
    """
    try:
        import open_clip
    except ImportError as error:
        raise MaskwrightError(
            "open_clip is not installed", "it, for the names, texts and tokens of CLIP's towers", INSTALL
        ) from error
    return open_clip


@dataclass(frozen=True)
class Pair:
    """An image tower and a text tower that were trained together.

    Attributes:
        name: as it was asked for.
        config: the description in open_clip's format: `embed_dim`, `vision_cfg`, `text_cfg`, `quick_gelu`.
        place: where the file can be read again; None for the hub's, and where there is none.
        file: what the file holds; None for weights that are drawn.
        license: of the weights.
        mean, std: of the pictures, where the description says so.
        hub: repository whose weights they are; empty where they are no hub's, or lie at `place`.
        theirs: transformers' description, where it is that.
        folder: where files of a tokenizer of transformers lie; None where there are none.
    """

    name: str
    config: Mapping[str, Any]
    place: Path | None = None
    file: WeightsFile | None = None
    license: str = "unknown"
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    hub: str = ""
    theirs: Mapping[str, Any] | None = None
    folder: Path | None = None

    @property
    def shape(self) -> TowerShape:
        """The build of its image tower."""
        return TowerShape.of(self.config, self.name)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by the names of open_clip's `CLIP`, in fp32; read again where they were put away. Empty for
        weights that are drawn."""
        return {} if self.file is None else clip_tensors(self.as_stored(), self.file.source)

    def as_stored(self) -> dict[str, Any]:
        """What the file holds, as it names it; read again where it was put away. Empty for weights that are drawn."""
        file = self.file
        if file is None or file.tensors:
            return {} if file is None else file.tensors
        again = hub_weights(self.hub, HUB_FILE, GIVE) if self.hub else read_weights_file(str(self.place))
        if again.sha256 != file.sha256:
            raise MaskwrightError(f"{file.source} changed while it was read", "the same file throughout", "start again")
        return again.tensors

    def without_tensors(self) -> Pair:
        """The same, without what a file holds: a text tower is read when it is needed, and not kept in memory."""
        return self if self.file is None else replace(self, file=replace(self.file, tensors={}))


def find_pair(name: str, weights: str | None) -> Pair:
    """Finds description and tensors.

    Args:
        name: `clip`, `clip:NAME` or `clip:NAME:TAG`, by open_clip's names and tags, or `clip:hf:OWNER/NAME`.
        weights: None for the hub's (or its local cache's), a file, a folder, or "random".

    Raises:
        MaskwrightError: unknown name or tag, no such weights, a file of another kind, or open_clip is needed and not
            installed.
    """
    if name.startswith(HUB_NAME) and weights in (None, "random"):
        return _of_repository(name, drawn=weights == "random")
    named = "" if name.startswith(HUB_NAME) else name  # what lies there describes itself
    arch, _, tag = named.removeprefix(CLIP).removeprefix(":").partition(":")
    if weights == "random":
        return Pair(name, _listed(arch or USUAL, tag))
    if weights is None:
        return _of_hub(name, arch or USUAL, tag)
    place = Path(weights)
    folder = place if place.is_dir() else place.parent
    described = _described(folder) if place.is_dir() or not arch else None
    if place.is_dir():
        there = [folder / file for file in FILES if (folder / file).is_file()]
        if described is None or not there:
            raise MaskwrightError(
                f"{place} holds no pair of towers", f"{CONFIG} and {HUB_FILE}, as open_clip saves a model",
                "give the folder of such a model, or its file with --backbone clip:NAME",
            )  # fmt: skip
        place = there[0]
    if _is_script(place):
        raise MaskwrightError(
            f"{place} is a TorchScript archive, as OpenAI published CLIP, which holds code",
            "tensors alone",
            f"if you trust its origin: python -c \"import torch; torch.save(torch.jit.load('{place}', 'cpu')"
            f".state_dict(), 'clip.pt')\", then --backbone clip:{arch or USUAL}:openai --weights clip.pt",
        )
    file = read_weights_file(place)
    if described is None:
        if not arch:
            raise MaskwrightError(
                f"{place} does not say which network it is of", f"{CONFIG} beside it, or a name",
                f"give --backbone {CLIP}:{USUAL}, or another of open_clip's names",
            )  # fmt: skip
        described = {"model_cfg": _listed(arch, tag)}
    config = dict(described["model_cfg"])
    if OPENAI_ONLY in unwrap_entry(file.tensors):
        config["quick_gelu"] = True
    pair = Pair(
        name, config, place, file, str(file.metadata.get("license", "unknown")), **_beside(described, folder)
    )  # fmt: skip
    if (
        arch
        and Path(weights).is_dir()
        and replace(pair.shape, act="gelu") != replace(TowerShape.of(_listed(arch, tag), arch), act="gelu")
    ):
        raise MaskwrightError(
            f"--backbone {name}, and {weights} holds another network, {pair.shape.text()}", "one network",
            "leave the name out: --backbone clip",
        )  # fmt: skip
    return pair


def _listed(arch: str, tag: str = "") -> dict[str, Any]:
    """open_clip's description of a name; a tag says which activation its weights were trained with."""
    open_clip = open_clip_module()
    config = open_clip.get_model_config(arch)
    if config is None:
        raise unknown("CLIP network", arch, open_clip.list_models())
    config = dict(config)
    if tag:
        tags = open_clip.list_pretrained_tags_by_model(arch)
        if tag not in tags:
            raise unknown(f"weights of {arch}", tag, tags or ["none: give --weights FILE"])
        config["quick_gelu"] = bool(
            open_clip.get_pretrained_cfg(arch, tag).get("quick_gelu", config.get("quick_gelu", False))
        )
    return config


def _of_hub(name: str, arch: str, tag: str) -> Pair:
    open_clip = open_clip_module()
    _listed(arch)  # an unknown name is told as such
    tags = open_clip.list_pretrained_tags_by_model(arch)
    tag = tag or (USUAL_TAG if USUAL_TAG in tags else tags[0] if tags else "")
    config = _listed(arch, tag)
    repo = ((open_clip.get_pretrained_cfg(arch, tag) or {}).get("hf_hub") or "").strip("/") if tag else ""
    if not repo:
        raise MaskwrightError(f"no hub has weights of {name}", "a name with weights", "give --weights FILE")
    told = open_clip.get_pretrained_cfg(arch, tag)
    numbers = {"mean": told.get("mean"), "std": told.get("std")}
    return Pair(
        name, config, None, hub_weights(repo, HUB_FILE, GIVE), "MIT" if tag == USUAL_TAG else "unknown", hub=repo,
        **_normalisation(numbers),
    )  # fmt: skip


def _of_repository(name: str, drawn: bool) -> Pair:
    """A repository of a model hub that holds what a folder may hold; with `drawn` its description alone."""
    repo = name.removeprefix(HUB_NAME)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise MaskwrightError(
            f"--backbone {name[:80]}", f"{HUB_NAME}OWNER/NAME", f"--backbone {HUB_NAME}openai/clip-vit-base-patch16"
        )

    def file(entry: str) -> Path | None:
        return hub_entry(repo, entry, "towers", GIVE_FOLDER)

    description = file(CONFIG) or file(THEIRS) or hub_file(repo, THEIRS, "towers", GIVE_FOLDER)
    folder = description.parent
    if not drawn:
        for entry in (*PICTURES, *TOKEN_FILES):
            file(entry)
    described = _described(folder)
    assert described is not None
    if drawn:
        return Pair(name, dict(described["model_cfg"]))
    files = FILES[:2] if description.name == CONFIG else FILES[2:]
    place = next((path for entry in files if (path := file(entry)) is not None), None)
    if place is None:
        raise MaskwrightError(f"the hub's {repo} has no weights", " or ".join(files), GIVE_FOLDER)
    read = read_weights_file(place, source=f"hub: {repo}")
    license = str(read.metadata.get("license", "unknown"))
    return Pair(name, dict(described["model_cfg"]), place, read, license, **_beside(described, folder))


def _beside(described: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What a description says beside the towers' build, and whether a tokenizer lies there."""
    tokens = folder if any((folder / file).is_file() for file in TOKENS) else None
    return {"theirs": described.get("theirs"), "folder": tokens, **_normalisation(described.get("preprocess_cfg"))}


def _normalisation(record: Any) -> dict[str, Any]:
    """Mean and standard deviation of a description, each None where it does not say."""
    found: dict[str, Any] = {}
    for key in ("mean", "std"):
        values = record.get(key) if isinstance(record, Mapping) else None
        if isinstance(values, list | tuple) and len(values) == 3 and all(isinstance(v, int | float) for v in values):
            found[key] = tuple(float(v) for v in values)
    return found


def holds_pair(folder: Path) -> bool:
    """Whether a folder says that it holds a pair of towers, which the weights in it are then of."""
    return (folder / CONFIG).is_file() or (folder / THEIRS).is_file()


def _described(folder: Path) -> dict[str, Any] | None:
    """The description that lies in a folder, in open_clip's format; None where there is none."""
    for name, read in ((CONFIG, _as_it_is), (THEIRS, _of_transformers)):
        path = folder / name
        if not path.is_file():
            continue
        try:
            found = read(json.loads(path.read_text(encoding="utf-8")))
            return found if name == CONFIG else {**found, "preprocess_cfg": _pictures(folder)}
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise MaskwrightError(
                f"{path} describes no CLIP ({type(error).__name__}: {error})", "the description of a pair of towers",
                "fetch it again",
            ) from error  # fmt: skip
    return None


def _pictures(folder: Path) -> dict[str, Any] | None:
    """Mean and standard deviation as transformers writes them; None where it did not."""
    for name in PICTURES:
        if (folder / name).is_file():
            record = json.loads((folder / name).read_text(encoding="utf-8"))
            record = record.get("image_processor", record)
            return {"mean": record.get("image_mean"), "std": record.get("image_std")}
    return None


def _as_it_is(record: Any) -> dict[str, Any]:
    config = record["model_cfg"]
    if missing := {"vision_cfg", "text_cfg", "embed_dim"} - set(config):
        raise KeyError(", ".join(sorted(missing)))
    return {"model_cfg": dict(config), "preprocess_cfg": record.get("preprocess_cfg")}


def _of_transformers(record: Any) -> dict[str, Any]:
    """transformers' description of a `CLIPModel`; what it leaves out is as there by default, that of ViT-B/32."""
    if record.get("model_type") != "clip":
        raise ValueError(f"model_type {record.get('model_type')!r}")
    vision, text = (record.get(f"{side}_config") or {} for side in ("vision", "text"))
    width, words = vision.get("hidden_size", 768), text.get("hidden_size", 512)
    acts = {side.get("hidden_act", "quick_gelu") for side in (vision, text)}
    if acts not in ({"quick_gelu"}, {"gelu"}):
        raise ValueError(f"hidden_act {acts}")
    eps = [{"norm_kwargs": {"eps": float(side.get("layer_norm_eps", 1e-5))}} for side in (vision, text)]
    config = {
        "embed_dim": record.get("projection_dim", 512),
        "quick_gelu": acts == {"quick_gelu"},
        "vision_cfg": {
            "image_size": vision.get("image_size", 224), "patch_size": vision.get("patch_size", 32), "width": width,
            "layers": vision.get("num_hidden_layers", 12), "head_width": width // vision.get("num_attention_heads", 12),
            "mlp_ratio": vision.get("intermediate_size", 3072) / width, **eps[0],
        },
        "text_cfg": {
            "context_length": text.get("max_position_embeddings", 77), "vocab_size": text.get("vocab_size", 49408),
            "width": words, "heads": text.get("num_attention_heads", 8), "layers": text.get("num_hidden_layers", 12),
            "mlp_ratio": text.get("intermediate_size", 2048) / words, **eps[1],
        },
    }  # fmt: skip
    return {"model_cfg": config, "theirs": record}


def _is_script(path: Path) -> bool:
    if path.suffix == ".safetensors" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


# --------------------------------------------------------------------- names of tensors

_PREFIXES = ("module.", "_orig_mod.", "model.")
_TRANSFORMERS = (
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)


def clip_tensors(checkpoint: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """A checkpoint of a pair by the names of open_clip's `CLIP`, in fp32.

    Args:
        checkpoint: what the file holds.
        source: for the error.

    Raises:
        MaskwrightError: there is no image tower of CLIP's kind in it.
    """
    tensors = {str(k): v for k, v in unwrap_entry(checkpoint).items() if isinstance(v, Tensor)}
    for _ in range(3):
        prefix = next((p for p in _PREFIXES if any(k.startswith(p) for k in tensors)), None)
        if prefix is None:
            break
        tensors = {k.removeprefix(prefix): v for k, v in tensors.items()}
    if any(k.startswith("vision_model.") for k in tensors):
        tensors = _from_transformers(tensors)
    tensors = {k.removeprefix("text."): v for k, v in tensors.items()}
    if "visual.conv1.weight" not in tensors:
        raise MaskwrightError(
            f"{source} holds no CLIP: its tensors are {', '.join(list(tensors)[:3]) or 'none'}",
            "an image and a text tower in the format of open_clip, OpenAI or transformers",
            "give the file of such a pair",
        )
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def _from_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if key in ("visual_projection.weight", "text_projection.weight"):
            found["visual.proj" if key.startswith("visual") else "text_projection"] = value.T
            continue
        name = key
        for pattern, new in _TRANSFORMERS:
            name = re.sub(pattern, new, name)
        if re.search(r"\.self_attn\.[kv]_proj\.", name):
            continue  # joined with the queries
        if match := re.search(r"\.self_attn\.q_proj\.(weight|bias)$", name):
            three = [tensors[key.replace(".q_proj.", f".{one}_proj.")] for one in "qkv"]
            found[f"{name[: match.start()]}.attn.in_proj_{match[1]}"] = torch.cat(three)
            continue
        found[name] = value
    return found
