"""A text tower and its tokens: open_clip's, with the weights that belong to an image tower. `other_text.py` has those
of transformers, and says which a pair wants.

Legend: N texts, E channels of the joint space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from maskwright.errors import MaskwrightError, shown
from maskwright.models.towers.pairs import Pair, open_clip_module

WORDS = 49408
"""Tokens of CLIP's byte-pair encoding."""
SMALLEST: dict[str, Any] = {"image_size": 32, "patch_size": 32, "layers": 1, "width": 64}
"""The image tower that open_clip builds beside a text tower, and that is thrown away."""


def clip_tokens(length: int, **cleaning: Any) -> Any:
    """CLIP's tokenizer for texts of so many tokens.

    Raises:
        MaskwrightError: open_clip, which has it, is not installed.
    """
    return open_clip_module().tokenizer.SimpleTokenizer(context_length=length, **cleaning)


class Texts:
    """What embeds texts.

    Attributes:
        tokenizer: open_clip's, or one that is asked likewise: `encode(text)` gives the tokens without those around it.
        length: tokens that are read at most.
        units: whether each of several sentences around a word gets unit length before their mean.
    """

    units = True

    def __init__(self, tokenizer: Any, length: int) -> None:
        self.tokenizer, self.length = tokenizer, length

    def check(self, text: str, name: str) -> None:
        """Refuses a text that does not fit into the tower.

        Args:
            text: what will be embedded.
            name: the class that it is of, for the error.

        Raises:
            MaskwrightError: it has too many tokens; the tower would only see its beginning.
        """
        tokens = len(self.tokenizer.encode(text)) + 2
        if tokens > self.length:
            start = f"{shown(name[:40])}{'...' if len(name) > 40 else ''}"
            raise MaskwrightError(
                f"class name {start} is {tokens} tokens long in its sentence",
                f"at most {self.length}, all that the text tower reads",
                "say it in fewer words",
            )

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Texts as vectors, (N, E)."""
        raise NotImplementedError


class TextTower(Texts):
    """Texts as unit vectors in the space of an image tower.

    Args:
        pair: the towers; of a pair whose weights are drawn, those of the text tower are drawn now, from torch's global
            generator.

    Raises:
        MaskwrightError: open_clip is not installed, the tower is no transformer of CLIP's kind, or the file has none
            that fits.
    """

    def __init__(self, pair: Pair) -> None:
        open_clip = open_clip_module()
        config = dict(pair.config.get("text_cfg") or {})
        odd = [key for key in ("hf_tokenizer_name", "tokenizer_mode") if config.get(key)]
        cleaning = dict(config.pop("tokenizer_kwargs", None) or {})
        if odd or set(cleaning) - {"clean"}:
            what = odd[0] if odd else "tokenizer_kwargs"
            raise MaskwrightError(
                f"the text tower of {pair.name} has {what} = {config.get(what, cleaning)!r}",
                "CLIP's own transformer and tokens", "take another pair, as --backbone clip:ViT-B-16",
            )  # fmt: skip
        if config.get("vocab_size", WORDS) != WORDS:
            raise MaskwrightError(
                f"the text tower of {pair.name} knows {config['vocab_size']} tokens", f"CLIP's {WORDS}",
                "take another pair, as --backbone clip:ViT-B-16" if pair.theirs is None
                else "lay its tokenizer.json, as transformers saves it, into the folder",
            )  # fmt: skip
        length = int(config.get("context_length", 77))
        super().__init__(clip_tokens(length, **cleaning), length)
        try:
            model = open_clip.CLIP(
                embed_dim=pair.config["embed_dim"], vision_cfg=SMALLEST, text_cfg=config,
                quick_gelu=bool(pair.config.get("quick_gelu")),
            )  # fmt: skip
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise MaskwrightError(f"the text tower of {pair.name} cannot be built ({error})", "CLIP's own") from error
        del model.visual
        if pair.file is not None:
            load_text(model, pair, pair.tensors())
        self.model = model.eval().requires_grad_(False)
        self.causal = not config.get("no_causal_mask") and config.get("pool_type", "argmax") == "argmax"
        self.places, self.mask = self.model.positional_embedding.data, self.model.attn_mask

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Texts as unit vectors, (N, E)."""
        tokens = self.tokenizer(list(texts))
        if self.causal:
            # No token sees those behind it, and the vector is that of the end: what lies behind the longest text is
            # left out, which saves most of the time of short ones.
            longest = int(tokens.argmax(1).max()) + 1
            tokens = tokens[:, :longest]
            self.model.positional_embedding = torch.nn.Parameter(self.places[:longest], requires_grad=False)
            self.model.attn_mask = self.mask[:longest, :longest]
        found: Tensor = self.model.encode_text(tokens, normalize=True)
        return found


def load_text(model: Any, pair: Pair, given: Mapping[str, Tensor]) -> None:
    """Gives a text tower its weights.

    Args:
        model: the text tower; what it alone has is looked at.
        pair: whose it is.
        given: the pair's tensors by the text tower's names.

    Raises:
        MaskwrightError: some are missing, or of another shape.
    """
    own = model.state_dict()
    missing = [k for k in own if k not in given and not k.startswith("logit_")]
    wrong = [k for k in own if k in given and given[k].shape != own[k].shape]
    if missing or wrong:
        source = pair.file.source if pair.file is not None else pair.name
        first = (missing or wrong)[0]
        shapes = "" if missing else f" {tuple(given[first].shape)}, not {tuple(own[first].shape)}"
        told = f"{'lacks' if missing else 'has'} {first}{shapes}"
        raise MaskwrightError(
            f"{source} does not fit the text tower of {pair.name}: it {told}",
            "both towers of the network that --backbone names",
            "give the --backbone that the file was made for",
        )
    model.load_state_dict({k: given.get(k, v) for k, v in own.items()})
