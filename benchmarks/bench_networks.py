"""Segmentation networks at 1024 x 512: DDRNet-23-slim beside PSPNet and DeepLab v3+, and the table of all.

`python -m benchmarks networks` prints the ratios, `python -m benchmarks.bench_networks [NAME ...]` the table of
`docs/networks.md`. All weights are random, which costs the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import Row, one_thread, side_by_side
from maskwright.errors import MaskwrightError
from maskwright.models.backbones.build import build_backbone
from maskwright.models.networks.build import NETWORKS, Network, build_network

SIZE = (512, 1024)
CLASSES = 19
ENCODERS = ("mobilenetv2_100", "resnet18")
PUBLISHED: dict[str, tuple[float, str | None, int, dict[str, Any], tuple[int, int] | None]] = {
    "pspnet": (65.9, "resnet101", 19, {}, None),
    "deeplabv1": (20.5, None, 21, {}, None),
    "deeplabv3": (58.0, "resnet101", 19, {}, None),
    "deeplabv3plus": (43.5, "xception71", 19, {}, None),
    "upernet": (60.0, "swin_tiny_patch4_window7_224", 150, {"decoder_channels": 512}, None),
    "hrnet": (65.8, "hrnet_w48", 19, {}, None),
    "ocr": (70.3, "hrnet_w48", 19, {}, None),
    "ddrnet23_slim": (5.7, None, 19, {}, None),
    "ddrnet23": (20.1, None, 19, {}, None),
    "ddrnet39": (32.3, None, 19, {}, None),
    "segmenter_linear": (87, "deit_base_patch16_384", 150, {}, (512, 512)),
    "segmenter_mask": (334, "vit_large_patch16_384", 150, {}, (640, 640)),
    "setr_naive": (87.69, "vit_base_patch16_384", 19, {}, (768, 768)),
    "setr_pup": (97.64, "vit_base_patch16_384", 19, {}, (768, 768)),
    "setr_mla": (92.59, "vit_base_patch16_384", 19, {}, (768, 768)),
}
"""Millions of parameters that a paper prints, without auxiliary heads, and the encoder, classes, options and input
size that the number is for."""
STANDARD = "mobilenetv2_100"
STANDARD_VIT = "vit_small_patch16_224"
"""Encoders that all networks of the table are measured on, where they do not bring their own."""


def encoder_for(name: str) -> str | None:
    """The encoder on which a network is measured: one for all, but for networks that are tied to theirs."""
    if NETWORKS[name].encoder == "own":
        return None
    special = {"deeplabv1": "vgg16", "hrnet": "hrnet_w18"}
    return special.get(name, STANDARD_VIT if NETWORKS[name].encoder == "vit" else STANDARD)


def make(
    name: str,
    encoder: str | None,
    classes: int = CLASSES,
    size: tuple[int, int] | None = None,
    options: dict[str, Any] | None = None,
) -> Network:
    """A network with random weights, in evaluation mode."""
    sized = {"img_size": size} if size is not None and NETWORKS[name].encoder == "vit" else {}
    backbone = None if encoder is None else build_backbone(encoder, "random", **sized)
    return build_network(name, backbone, classes, options=options).eval()


def parameters(network: Network) -> tuple[int, int]:
    """Parameters in use after training, and those of the auxiliary heads."""
    parts = (network.encoder, network.decoder, network.classifier, network.aux)
    *kept, aux = (sum(p.numel() for p in part.parameters()) for part in parts)
    return sum(kept), aux


def multiply_adds(network: nn.Module, size: tuple[int, int] = SIZE) -> int:
    """Multiply-adds of one forward pass in convolutions and matrix products; counted without computing anything."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.to("meta")(torch.empty(1, 3, *size, device="meta"))
    return counter.get_total_flops() // 2


def _forward(network: Network, x: Tensor) -> Callable[[], Tensor]:
    @torch.inference_mode()
    def run() -> Tensor:
        return network(x)

    return run


def _fast(network: Network) -> Network:
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def rows() -> list[Row]:
    """DDRNet-23-slim against PSPNet and DeepLab v3+ on two small encoders; one thread, fp32, channels last."""
    x = torch.randn(1, 3, *SIZE).contiguous(memory_format=torch.channels_last)
    ours = _fast(make("ddrnet23_slim", None))
    table = []
    with one_thread():
        for encoder in ENCODERS:
            for name in ("pspnet", "deeplabv3plus"):
                other = _fast(make(name, encoder))
                ours_s, other_s = side_by_side(_forward(ours, x), _forward(other, x), repeats=3)
                agrees = f"logits at 1/8 and 1/{SIZE[0] // _forward(other, x)().shape[-2]}"
                title = f"{NETWORKS[name].title}, {encoder}"
                table.append(Row("DDRNet-23-slim, forward 1024x512", ours_s, title, other_s, 1.0, agrees=agrees))
    return table


def published_row(name: str) -> str:
    """Parameters with the paper's encoder beside the published number."""
    if name not in PUBLISHED:
        return f"| {name} | - | - | - | - |"
    published, encoder, classes, options, size = PUBLISHED[name]
    kept, aux = (count / 1e6 for count in parameters(make(name, encoder, classes, size, options)))
    with_options = "".join(f", {key} {value}" for key, value in options.items())
    gap = kept / published - 1
    return f"| {name} | {encoder or 'its own'}{with_options} | {kept:.2f} + {aux:.2f} | {published} | {gap:+.1%} |"


def cost_row(name: str, repeats: int = 3) -> str:
    """Parameters, multiply-adds and time at 1024 x 512 on the standard encoder, DDRNet-23-slim's time being 1."""
    encoder = encoder_for(name)
    network, unit = _fast(make(name, encoder, size=SIZE)), _fast(make("ddrnet23_slim", None))
    x = torch.randn(1, 3, *SIZE).contiguous(memory_format=torch.channels_last)
    with one_thread():
        seconds, unit_seconds = side_by_side(_forward(network, x), _forward(unit, x), repeats=repeats)
        stride = SIZE[0] / _forward(network, x)().shape[-2]
    kept, aux = parameters(network)
    adds = multiply_adds(network)
    heads = ", ".join(f"{k} {v:g}" for k, v in network.aux_weights.items()) or "-"
    return (
        f"| {name} | {encoder or 'its own'} | {stride:g} | {heads} | {kept / 1e6:.2f} | {aux / 1e6:.2f} | "
        f"{adds / 1e9:.1f} | {seconds / unit_seconds:.1f} |"
    )


def main(names: list[str]) -> int:
    """Prints both tables as Markdown; returns 1 if a network failed."""
    chosen = names or list(NETWORKS)
    failed = 0
    for head, row in (
        ("| network | encoder of the count | parameters + auxiliary, M | published, M | gap |", published_row),
        (
            "| network | encoder | stride | auxiliary heads | parameters, M | auxiliary, M | multiply-adds, G | "
            "time, DDRNet-23-slim = 1 |",
            cost_row,
        ),
    ):
        print(f"\n{head}\n|{'---|' * (head.count('|') - 1)}")
        for name in chosen:
            try:
                print(row(name), flush=True)
            except (MaskwrightError, RuntimeError, NotImplementedError) as error:
                failed = 1
                print(f"{name} failed: {error}", file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
