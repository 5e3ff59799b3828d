"""Text towers and tokenizers of transformers: of its own `CLIPModel`, and of open_clip's pairs that name one (RoBERTa).

A folder of a `CLIPModel` whose tokens are CLIP's own is open_clip's text tower as well, which is taken where it is
installed. transformers is imported when it is first needed, and no code of a folder or a hub is run.

Legend: N texts, T tokens, E channels of the joint space.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.errors import MaskwrightError
from maskwright.models.towers.pairs import Pair, open_clip_module
from maskwright.models.towers.text import WORDS, Texts, TextTower, clip_tokens, load_text

SPECIAL = {"<|startoftext|>": "<start_of_text>", "<|endoftext|>": "<end_of_text>"}
"""How transformers and open_clip write the tokens around a text."""


def transformers_module(why: str) -> Any:
    """transformers, imported when it is first needed.

    Args:
        why: what asks for it.

    Raises:
        MaskwrightError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise MaskwrightError(
            f"{why}, and transformers is not installed", "it, for texts and tokens", "pip install 'maskwright[hf]'"
        ) from error
    return transformers


def text_tower(pair: Pair) -> Texts:
    """The text tower of a pair: open_clip's where it is CLIP's own with CLIP's tokens, else transformers'. Weights that
    are drawn are drawn now, from torch's global generator.

    Raises:
        MaskwrightError: as `check_texts` and `TextTower`; the tokens or the description cannot be had, or the file does
            not fit.
    """
    if (pair.config.get("text_cfg") or {}).get("hf_model_name"):
        return _named_by_open_clip(pair)
    return _of_clip(pair) if _by_transformers(pair) else TextTower(pair)


def check_texts(pair: Pair) -> None:
    """Refuses a pair whose texts need what is not installed.

    Raises:
        MaskwrightError: with what to install.
    """
    if named := (pair.config.get("text_cfg") or {}).get("hf_model_name"):
        open_clip_module()
        transformers_module(f"the text tower of {pair.name} is {named}")
    elif _by_transformers(pair):
        transformers_module(f"{pair.folder} has a tokenizer of its own")
    else:
        open_clip_module()


def _by_transformers(pair: Pair) -> bool:
    """Whether a `CLIPModel` has other tokens than CLIP's, or only transformers is there to read them."""
    if pair.theirs is None or pair.folder is None:
        return False
    if not _installed("open_clip"):
        return _installed("transformers")
    return pair.config["text_cfg"].get("vocab_size", WORDS) != WORDS or not has_clips_tokens(pair.folder)


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def has_clips_tokens(folder: Path) -> bool:
    """Whether a folder's tokenizer cuts texts as CLIP's own, by its vocabulary and its merges."""
    own = clip_tokens(77)
    merges = sorted(own.bpe_ranks, key=own.bpe_ranks.get)
    try:
        if (folder / "tokenizer.json").is_file():
            record = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
            if '"Lowercase"' not in json.dumps(record["normalizer"]):
                return False
            known, joins = record["model"]["vocab"], record["model"]["merges"]
            joined = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in joins]
        else:
            known = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
            lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
            joined = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version")]
        return {SPECIAL.get(k, k): v for k, v in known.items()} == own.encoder and joined == merges
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


class Tokens:
    """A tokenizer of transformers, asked as open_clip's.

    Args:
        tokenizer: of transformers.
        length: tokens of a text at most.
    """

    def __init__(self, tokenizer: Any, length: int) -> None:
        self.tokenizer, self.length = tokenizer, length

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without those around it."""
        found: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return found

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Texts as `input_ids` and `attention_mask`, int64 (N, T)."""
        found = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.length, return_tensors="pt"
        )  # fmt: skip
        return {name: found[name] for name in ("input_ids", "attention_mask")}


class OtherText(Texts):
    """Texts as unit vectors, by a model of transformers.

    Args:
        tokenizer: its tokens.
        length: tokens that are read at most.
        model: the module.
        embed: what is asked of it: tokens to (N, E).
    """

    def __init__(self, tokenizer: Any, length: int, model: Any, embed: Callable[[Any], Tensor]) -> None:
        super().__init__(tokenizer, length)
        self.model, self.embed = model.eval().requires_grad_(False), embed

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Texts as unit vectors, (N, E)."""
        return F.normalize(self.embed(self.tokenizer(list(texts))), dim=-1)


def _of_clip(pair: Pair) -> OtherText:
    """That of a `CLIPModel`."""
    assert pair.theirs is not None and pair.folder is not None
    transformers = transformers_module(f"{pair.folder} has a tokenizer of its own")
    described = dict(pair.theirs.get("text_config") or {})
    length = int(pair.config["text_cfg"]["context_length"])
    try:
        config = transformers.CLIPTextConfig(**{**described, "projection_dim": pair.config["embed_dim"]})
        model = transformers.CLIPTextModelWithProjection(config)
    except (TypeError, ValueError, RuntimeError) as error:
        raise MaskwrightError(f"the text tower of {pair.name} cannot be built ({error})", "a CLIPModel's") from error
    if pair.file is not None:
        load_text(model, pair, {k: v.float() for k, v in pair.as_stored().items() if isinstance(v, Tensor)})
    tokens = Tokens(_tokenizer(transformers, str(pair.folder)), length)
    return OtherText(tokens, length, model, lambda asked: model(**asked).text_embeds)


def _named_by_open_clip(pair: Pair) -> OtherText:
    """That of a pair of open_clip which names a model of transformers."""
    open_clip, config = open_clip_module(), dict(pair.config["text_cfg"])
    name = config["hf_model_name"]
    transformers = transformers_module(f"the text tower of {pair.name} is {name}")
    known = open_clip.CLIPTextCfg(**config)
    tokens = str(pair.folder) if pair.folder is not None else known.hf_tokenizer_name or name
    try:
        model = open_clip.hf_model.HFTextEncoder(
            name, output_dim=pair.config["embed_dim"], proj_type=known.hf_proj_type, pooler_type=known.hf_pooler_type,
            pretrained=False,
        )  # fmt: skip
    except (OSError, TypeError, ValueError, RuntimeError, KeyError) as error:
        raise _not_had(name, error) from error
    if pair.file is not None:
        load_text(model, pair, pair.tensors())
    _tokenizer(transformers, tokens)  # refuses in one line what open_clip would
    told = dict(known.tokenizer_kwargs or {})
    tokenizer = open_clip.tokenizer.HFTokenizer(
        tokens, context_length=known.context_length, tokenizer_mode=known.tokenizer_mode, **told
    )
    return OtherText(_Cut(tokenizer), known.context_length, model, model)


class _Cut:
    """open_clip's wrapper of a tokenizer, which lacks `encode`."""

    def __init__(self, wrapper: Any) -> None:
        self.wrapper = wrapper

    def encode(self, text: str) -> list[int]:
        found: list[int] = self.wrapper.tokenizer.encode(text, add_special_tokens=False)
        return found

    def __call__(self, texts: Sequence[str]) -> Tensor:
        found: Tensor = self.wrapper(list(texts))
        return found


def _tokenizer(transformers: Any, place: str) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(place)
    except (OSError, TypeError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise _not_had(place, error) from error


def _not_had(place: str, error: Exception) -> MaskwrightError:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return MaskwrightError(
        f"transformers cannot read {place} ({first[:200]})", "a description and the files of a tokenizer",
        "fetch it again where a hub answers; its local cache is read without one",
    )  # fmt: skip
