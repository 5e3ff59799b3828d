"""CLIP-ES: CLIP Is Also an Efficient Segmenter: A Text-Driven Approach for Weakly Supervised Semantic Segmentation
(Lin et al., CVPR 2023, https://arxiv.org/abs/2212.09506).

No classifier is trained. A frozen CLIP compares the photograph with the names of its tags and of things that stand
behind them. Grad-CAM of y_c = softmax(100 cos)_c says where the evidence for tag c is: what speaks for another tag or
for the background counts against it. CLIP's own attention spreads the maps; a dense CRF makes labels, of which a
network learns the sure ones.

    A      mean over heads and the last 8 blocks, columns and rows brought to 1 three times, symmetric, squared
    M_c    = minmax(A (B_c * CAM_c)),    B_c boxes around what is high in CAM_c
    labels = argmax CRF([1 - max_c M_c, M]), without those below 0.95

Deviates: on any CLIP vision transformer; the network that learns stands on it too, unless `network.name` brings another
encoder (DeepLabv2 on a ResNet in the paper); photographs are rounded to the nearest multiple of a patch, and maps kept
at a quarter of that size. Where the class table has no background, its pixels have no label. Synonyms of a class are
averaged. Plurals are made singular.

What the original gets wrong: y in fp16 has no gradient left where CLIP is sure (here its logit's is taken, the same map
up to a factor); boxes end one patch early at the right and lower border; a photograph without a tag ends
the whole process. The paper's gradient is of the last layer; the code's, and ours, of what its first norm gives.

Legend: B photographs, T tags, P background words, E channels of the joint space, D width, (h, w) grid, N = h w.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.data.training.tag_targets import BACKGROUND_NAMES
from maskwright.engine import seeding
from maskwright.engine.config import Idle, option, part
from maskwright.engine.contract import Stage
from maskwright.errors import MaskwrightError
from maskwright.models.backbones.dense import autocast
from maskwright.models.tensors import save_tensors
from maskwright.models.towers.image import ClipViT
from maskwright.models.towers.names import BACKGROUND, ClassWords, class_words, plain_word
from maskwright.models.towers.other_text import text_tower
from maskwright.models.towers.prompts import TEMPLATES
from maskwright.models.towers.text import Texts
from maskwright.models.towers.vocabulary import embed_words
from maskwright.ops.attention_affinity import attention_transition, spread_in_boxes
from maskwright.ops.cam import grad_cam, normalize_cam
from maskwright.recipes.tags.maps import ImageCams
from maskwright.recipes.tags.method import TagMethod
from maskwright.recipes.tags.options import ClassifierOptions, MapOptions, SeedOptions, TagsConfig
from maskwright.recipes.tags.seeding import make_seeds
from maskwright.recipes.tags.seeds import seeds_by_power
from maskwright.recipes.tags.showing import Way
from maskwright.recipes.tags.thresholds import Threshold

BEHIND = (
    "ground", "land", "grass", "tree", "building", "wall", "sky", "lake", "water", "river", "sea", "railway",
    "railroad", "keyboard", "helmet", "cloud", "house", "mountain", "ocean", "road", "rock", "street", "valley",
    "bridge", "sign",
)  # fmt: skip
"""The authors' words of VOC's background, as their `clip_text.py` has them (commit 78e0198); for COCO they leave out
keyboard and sign."""
CLEARER = {
    "bird": "bird avian", "chair": "chair seat", "person": "person with clothes,people,human",
    "tvmonitor": "tvmonitor screen",
}  # fmt: skip
"""Names of VOC that the authors write in another way (same file); their further ones of COCO, as necktie for tie, are
not taken."""
SCALE = 100.0
"""CLIP's factor of cosines."""
WORDS = "words.safetensors"
SHAPES: dict[str, str | tuple[str, str]] = {"tags": "TE", "behind": "PE"}


@dataclass(kw_only=True)
class NameOptions:
    """From names to vectors."""

    prompts: str = option("origami", "sentences around a name, averaged", choices=tuple(TEMPLATES))
    clearer: bool = option(True, "write bird, chair, person and tvmonitor as the authors do")
    singular: bool = option(True, "make plurals singular")
    behind: tuple[str, ...] = option(
        BEHIND, "what stands behind things and counts against tags; words of tags are left out"
    )


@dataclass(kw_only=True)
class ClipMaps(MapOptions):
    """How class maps are made."""

    scales: tuple[float, ...] = option((1.0,), "input sizes the maps are taken at", low=0.05, high=8)
    flips: bool = option(False, "add the maps of the mirrored image")
    blocks: int = option(8, "last blocks whose attention spreads the maps; 0: they are not spread", low=0, main=True)
    box: float = option(0.4, "share of a map's maximum around which boxes are drawn", low=0.01, high=1)


@dataclass(kw_only=True)
class SureSeeds(SeedOptions):
    """How class maps become pseudo masks."""

    alpha: float = option(1.0, "(1 - max)^alpha is the background's map", low=0.01, high=100)
    sure: float = option(0.95, "labels below this probability after the CRF are not learned from", low=0, high=1,
                         main=True)  # fmt: skip


@dataclass(kw_only=True)
class ClipEsConfig(TagsConfig):
    """Options of `clip_es`."""

    names: NameOptions = part(NameOptions)
    classifier: ClassifierOptions = part(
        ClassifierOptions, without=tuple(f.name for f in fields(ClassifierOptions) if f.name != "long_side"),
        says={"long_side": "long side of images for the maps, pixels"}, main=("long_side",),
    )  # fmt: skip
    maps: ClipMaps = part(ClipMaps)
    seeds: SureSeeds = part(SureSeeds, without=("threshold", "threshold_rule", "oracle_threshold", "band"))

    def idle(self) -> Idle:
        """Boxes around maps that are not spread."""
        yield from super().idle()
        if not self.maps.blocks:
            yield ("maps.box",), "maps.blocks=0"


# --------------------------------------------------------------------- maps


def mean_attention(block: Any, tokens: Tensor) -> Tensor:
    """A block's attention, averaged over heads: (B, 1 + N, D) to (B, 1 + N, 1 + N), rows of sum 1."""
    q, k, _ = block.attn.qkv(block.norm1(tokens)).chunk(3, -1)
    q, k = (x.unflatten(-1, (block.attn.num_heads, -1)).transpose(1, 2) for x in (q, k))
    return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1).mean(1)


def until_last(tower: ClipViT, x: Tensor, blocks: int) -> tuple[Tensor, Tensor | None]:
    """What enters the last block, and how patches look at each other.

    Args:
        tower: the image tower.
        x: (B, 3, H, W), normalised.
        blocks: last blocks whose attention is averaged, the very last among them; 0: none.

    Returns:
        (B, 1 + N, D), and (B, N, N) or None.
    """
    tokens, _ = tower._start(x)
    model: Any = tower.model
    seen, first = [], len(model.blocks) - blocks
    for k, block in enumerate(model.blocks):
        if k >= first:
            seen.append(mean_attention(block, tokens)[:, 1:, 1:])
        if k < len(model.blocks) - 1:
            tokens = block(tokens)
    return tokens, torch.stack(seen).mean(0) if seen else None


def tag_evidence(tower: ClipViT, tokens: Tensor, texts: Tensor, tags: int) -> Tensor:
    """Grad-CAM of the probabilities of a photograph's tags, at what the last block's first norm gives.

    Of their logits, log y / (1 - y): the gradient is that of y over y (1 - y), which the maps' range takes away, and
    does not vanish where CLIP is sure.

    Args:
        tower: the image tower.
        tokens: (1 + N, D) that enter the last block.
        texts: (K + P, E) of unit length, two at least; the first K are its tags.
        tags: K.

    Returns:
        (K, N), not negative.
    """
    model: Any = tower.model
    block = model.blocks[-1]
    with torch.enable_grad():
        u = block.norm1(tokens[None]).detach().requires_grad_()
        out = tokens[None] + block.attn(u)
        out = out + block.mlp(block.norm2(out))
        image = F.normalize(model.head(model.norm(out[:, 0])), dim=-1)
        z = (SCALE * image @ texts.T)[0]  # (K + P,)
        others = torch.eye(len(z), dtype=torch.bool, device=z.device)[:tags]
        y = z[:tags] - z.expand(tags, -1).masked_fill(others, float("-inf")).logsumexp(-1)  # logits of (K,)
        gradients = [torch.autograd.grad(one, u, retain_graph=True)[0] for one in y]
    a = u.detach()[0, 1:].T[:, None]  # (D, 1, N)
    return torch.stack([grad_cam(a, g[0, 1:].T[:, None])[0] for g in gradients])


class TextMaps:
    """Class maps by a frozen CLIP.

    Args:
        tower: the image tower.
        tags: (T, E), the vectors of all tags.
        behind: (P, E), those of the background's words.
        blocks: as for `until_last`.
        box: as for `spread_in_boxes`.
    """

    def __init__(self, tower: ClipViT, tags: Tensor, behind: Tensor, blocks: int = 8, box: float = 0.4) -> None:
        self.tower, self.tags, self.behind, self.box = tower, tags, behind, box
        self.blocks = min(blocks, tower.layers)
        self.multiple_of = tower.multiple_of

    def __call__(self, x: Tensor, tags: Tensor) -> Tensor:
        """Images (B, 3, H, W) and tags (B, T) to maps (B, T, h, w) in [0, 1], 0 for what is not tagged."""
        h, w = self.tower.grid((x.shape[-2], x.shape[-1]))
        found = x.new_zeros(len(x), tags.shape[1], h, w)
        with torch.no_grad():
            tokens, attention = until_last(self.tower, x, self.blocks)
            for b, own in enumerate(tags.bool()):
                if not own.any():
                    continue
                texts = torch.cat([self.tags[own], self.behind])
                cams = tag_evidence(self.tower, tokens[b], texts, int(own.sum())).view(-1, h, w)
                cams = normalize_cam(cams, "minmax")
                if attention is not None:
                    transition = attention_transition(attention[b])
                    cams = torch.stack([spread_in_boxes(one, transition, self.box) for one in cams])
                found[b, own] = cams
        return found


# --------------------------------------------------------------------- names


def tag_words(names: tuple[str, ...], ground: str | None, options: NameOptions) -> tuple[ClassWords, tuple[str, ...]]:
    """Names of tags as the text tower gets them, and the words that stand behind them.

    Args:
        names: of the tags.
        ground: name of the class that no tag names; its words count as words behind, unless it is background itself.
        options: as the run has them.

    Raises:
        MaskwrightError: as `class_words`, or no word is left behind.
    """
    found = class_words(names, singular=options.singular)
    own = {word for words in found.words for word in words}
    also = () if ground is None or plain_word(ground) in BACKGROUND_NAMES else tuple(ground.split("|"))
    others = (plain_word(b, options.singular) for b in (*options.behind, *also))
    behind = tuple(dict.fromkeys(w for w in others if w and w not in own))
    if not behind:
        raise MaskwrightError(
            "no word for what stands behind the tags", "some that are no tag", "--set names.behind=sky,wall"
        )
    if not options.clearer:
        return found, behind
    words = tuple(tuple(CLEARER.get(w, w) for w in words) for words in found.words)
    changed = [f"{w} as {CLEARER[w]}" for words in found.words for w in words if w in CLEARER]
    said = (*found.said, f"Written as the authors do: {'; '.join(changed)}.") if changed else found.said
    return ClassWords(found.names, words, found.background, said), behind


def embedded(tower: Texts, tags: ClassWords, behind: tuple[str, ...], prompts: str) -> dict[str, Tensor]:
    """Vectors of tags, the mean of each one's words, and of the words behind: (T, E), (P, E)."""
    one = embed_words(tower, tags, TEMPLATES[prompts])
    means = [F.normalize(one.vectors[one.owner == c].mean(0), dim=0) for c in range(len(tags.names))]
    others = ClassWords(behind, tuple((w,) for w in behind), None, ())
    return {"tags": torch.stack(means), "behind": embed_words(tower, others, TEMPLATES[prompts]).vectors}


class ClipEs(TagMethod):
    """A CLIP's evidence for tags, spread by its own attention."""

    name: ClassVar[str] = "clip_es"
    title: ClassVar[str] = "CLIP Is Also an Efficient Segmenter"
    venue: ClassVar[str] = "Lin et al., CVPR 2023"
    link: ClassVar[str] = "https://arxiv.org/abs/2212.09506"
    summary: ClassVar[str] = "Asks CLIP where tags are, by gradients."
    backbones: ClassVar[Any] = "joint"
    Config: ClassVar[type] = ClipEsConfig
    config: ClipEsConfig

    @property
    def tower(self) -> ClipViT:
        """The run's CLIP.

        Raises:
            MaskwrightError: it is a ResNet, which has no patches that look at each other.
        """
        tower = self.context.backbone
        if not isinstance(tower, ClipViT):
            raise MaskwrightError(
                f"clip_es on {tower.name}, a ResNet", "a vision transformer", "give --backbone clip:ViT-B-16"
            )
        return tower

    @classmethod
    def check_classes(cls, config: Any, names: Sequence[str]) -> None:
        """Refuses names that are no words; raises as `class_words`."""
        class_words([name for name in names if plain_word(name) != BACKGROUND], singular=config.names.singular)

    def stages(self) -> list[Stage]:
        """Tags and their names; no classifier is trained. Then as ever."""
        return [Stage("classify", "fit", self.read_names, "tags, and their names as vectors"), *super().stages()[1:]]

    def read_names(self, folder: Path) -> None:
        """Reads the tags and embeds their names; the artefacts are both."""
        context, pair = self.context, self.tower.pair
        targets = self.read_targets(folder)
        if pair is None:
            raise MaskwrightError(
                f"the backbone {context.backbone.name} comes without a text tower", "both towers",
                "give --backbone clip:NAME, with --weights FILE where no hub can be reached",
            )  # fmt: skip
        ground = None if targets.background is None else context.table.names[targets.background]
        tags, behind = tag_words(targets.names, ground, self.config.names)
        for sentence in (*tags.said, f"Against the tags count: {', '.join(behind)}."):
            context.note(sentence)
        seeding.initialise(context.seed, "names")  # for a text tower whose weights are drawn
        vectors = embedded(text_tower(pair), tags, behind, self.config.names.prompts)
        if context.run.writes:
            save_tensors(folder / WORDS, vectors)

    def trained(self) -> TextMaps:
        """The frozen CLIP and the vectors that the first stage left."""
        device, m = self.context.device, self.config.maps
        t = self.context.run.tensors("classify", WORDS, SHAPES)
        tower = self.tower.to(device)
        return TextMaps(tower, t["tags"].to(device), t["behind"].to(device), m.blocks, m.box)

    def maps(self, network: TextMaps) -> Callable[[Tensor, Tensor], Tensor]:
        """M_c of the tagged classes."""
        return network

    def precision(self) -> AbstractContextManager[None]:
        """fp32: gradients of a sharp softmax."""
        return autocast(self.context.device, "fp32")

    def seeds(self, folder: Path) -> None:
        """Labels of what the CRF is sure of; the folder is a dataset of its own."""
        s, ground = self.config.seeds, self.targets.background

        def label(cams: ImageCams, image: Any) -> Any:
            return seeds_by_power(cams, ground, alpha=s.alpha, sure=s.sure, image=image)

        known = Threshold(0.5, f"where the background's (1 - max)^{s.alpha:g} has more, before the CRF")
        way = Way.of(self, self.label_store)
        make_seeds(self.context, s, way, folder, known, label)
