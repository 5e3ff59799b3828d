"""A segmenter's network as an ONNX graph: normalised images of any size to logits.

Here is the one place where a network is traced. Training kernels are off meanwhile and no gradient is asked for,
whatever the caller's mode; modules that a tracer cannot follow for every size are replaced in a copy.

Legend: B batch, C classes, (H, W) input size, (h, w) feature-map size.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn

from maskwright.accel import switch
from maskwright.errors import MaskwrightError
from maskwright.models.segmenter import Segmenter

INPUT, LOGITS = "input", "logits"
"""Names of the graph's ends."""
LARGEST = 1 << 15
"""Multiples of the stride that a side may have."""
EXAMPLE = (160, 240)
"""Pixels of the input that is traced, about: unequal, and so large that no map inside has a side of 1, which a tracer
takes for one that is 1 whatever the input."""


def network_graph(segmenter: Segmenter, multiple: int, fixed: tuple[int, int] | None, opset: int) -> Any:
    """The network as ONNX.

    Args:
        segmenter: stays as it is; a copy of it is traced, on the processor, in float32 and evaluation mode.
        multiple: sides of all inputs are multiples of it.
        fixed: (H, W) of all inputs, or None where they vary.
        opset: of ai.onnx.

    Returns:
        An `onnx.ModelProto`: `input`, float32 (1, 3, H, W), to `logits` (1, C, h, w), of what the network tells apart:
        clusters, where its classes are made of them.

    Raises:
        MaskwrightError: the network cannot be traced, with the reason.
    """
    network = copy.deepcopy(segmenter).cpu().float().eval().requires_grad_(False)
    if network.naming is not None:
        network.classifier = network.naming.clusters
    stand_in(network)
    sides = fixed or (-(-EXAMPLE[0] // multiple) * multiple, -(-EXAMPLE[1] // multiple) * multiple)
    shapes: Any = None
    if fixed is None:
        shapes = {
            "x": {
                2 + i: multiple * torch.export.Dim(name, min=1, max=LARGEST) for i, name in enumerate(("rows", "cols"))
            }
        }
    with switch.using(False), torch.no_grad(), _quiet():
        try:
            if fixed is None:
                fix_padding(network, multiple)
            # Traced here and not by torch.onnx, because libraries compute otherwise where they know of ONNX.
            traced = torch.export.export(network, (torch.zeros(1, 3, *sides),), dynamic_shapes=shapes, strict=False)
            program = torch.onnx.export(
                traced, dynamo=True, input_names=[INPUT], output_names=[LOGITS], opset_version=opset, verbose=False,
                external_data=False,
            )  # fmt: skip
        except Exception as error:  # whatever a tracer, a converter or a layer under it says
            raise MaskwrightError(
                f"the network cannot be traced for images of any size ({_reason(error)})",
                "parts that torch.export follows",
                "give every image one size: a model trained on a preprocessing with `size`",
            ) from error
    assert program is not None
    return program.model_proto


def exact_logits(segmenter: Segmenter, x: Tensor) -> Tensor:
    """What the network says in float64, beside which rounding of float32 is seen.

    Args:
        segmenter: stays as it is; a copy of it is run, on the processor.
        x: normalised images (B, 3, H, W).

    Returns:
        Logits (B, C, h, w), float64.
    """
    network = copy.deepcopy(segmenter).cpu().double().eval()
    with switch.using(False), torch.inference_mode():
        return network(x.cpu().double())


def _reason(error: BaseException) -> str:
    """The innermost error's first line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join((str(error).strip() or type(error).__name__).splitlines()[0].split())[:160]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's advice on steps that are its own."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# ---------------------------------------------------------------------- what stands in for what cannot be traced


class AnyPool(nn.Module):
    """`nn.AdaptiveAvgPool2d` as two matrix products: ONNX has no pooling whose windows follow the input's size.

    Args:
        bins: (rows, columns) of the result; None keeps a side.
    """

    def __init__(self, bins: tuple[int | None, int | None]) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) to (B, D, rows, columns)."""
        rows, columns = self.bins
        if rows is not None:
            x = _shares(x.shape[-2], rows, x) @ x
        return x if columns is None else x @ _shares(x.shape[-1], columns, x).T


def _shares(n: int, bins: int, like: Tensor) -> Tensor:
    """(bins, n): what each cell counts in each bin; bin i holds the cells from floor(i n / bins) to
    ceil((i + 1) n / bins)."""
    cells = torch.arange(n, device=like.device)
    i = torch.arange(bins, device=like.device)[:, None]
    # cell >= floor(i n / b) and cell < ceil((i + 1) n / b), in whole numbers
    inside = ((cells + 1) * bins > i * n) & (cells * bins < (i + 1) * n)
    share = inside.to(like.dtype)
    return share / share.sum(1, keepdim=True)


class FixedSame(nn.Module):
    """timm's `Conv2dSame` where the stride divides the input's sides: its padding is then the same for all of them.

    As a function of the size it becomes a formula in a formula from layer to layer, over which a tracer sits minutes.

    Args:
        conv: whose weights it has.
    """

    def __init__(self, conv: Conv2dSame) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.stride, self.dilation, self.groups = conv.stride, conv.dilation, conv.groups
        sides: list[int] = []
        for k, s, d in zip(conv.kernel_size[::-1], self.stride[::-1], self.dilation[::-1], strict=True):
            whole = max((k - 1) * d + 1 - s, 0)
            sides += [whole // 2, whole - whole // 2]
        self.pads = tuple(sides)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W), H and W multiples of the stride, to (B, E, H / stride, W / stride)."""
        return F.conv2d(F.pad(x, self.pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def fix_padding(network: nn.Module, multiple: int) -> None:
    """Puts `FixedSame` in the place of convolutions whose input's sides are multiples of their stride whatever the
    image, as an input of an odd number of multiples shows; in place."""
    found: dict[str, bool] = {}
    hooks = []

    def seen(name: str, conv: Conv2dSame) -> Any:
        def look(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            fits = all(n % s == 0 for n, s in zip(given[0].shape[-2:], conv.stride, strict=True))
            found[name] = found.get(name, True) and fits

        return look

    for name, module in network.named_modules():
        if isinstance(module, Conv2dSame):
            hooks.append(module.register_forward_pre_hook(seen(name, module)))
    if not hooks:
        return
    odd = -(-EXAMPLE[0] // multiple) // 2 * 2 + 1
    try:
        network(torch.zeros(1, 3, odd * multiple, (odd + 2) * multiple))
    finally:
        for hook in hooks:
            hook.remove()
    for name in (name for name, fits in found.items() if fits):
        above, _, own = name.rpartition(".")
        setattr(network.get_submodule(above), own, FixedSame(network.get_submodule(name)))  # type: ignore[arg-type]


def stand_in(module: nn.Module) -> None:
    """Replaces what cannot be traced, in place, by what computes the same."""
    for name, child in module.named_children():
        if isinstance(child, nn.AdaptiveAvgPool2d):
            size = child.output_size
            bins = (size, size) if isinstance(size, int | None) else (size[0], size[1])
            if bins != (1, 1):
                setattr(module, name, AnyPool(bins))
        else:
            stand_in(child)
