"""A GPU that is not there: tensors sent to "cuda" stay in memory, and whoever mixes devices is told so as on CUDA.

    with PretendGPU() as gpu:
        x = torch.ones(3, device="cuda")        # x.device is cuda:0, x.is_cuda is True
        x + torch.ones(3)                       # RuntimeError
        x.numpy()                               # TypeError
    gpu.events                                  # copies between the two, and what would have made the CPU wait
    gpu.products                                # types of matrix products and convolutions, forward and backward

A `TorchDispatchMode` sees the operations on tensors, those of the backward pass and of optimisers included. On which
side a tensor lies is a property of its storage, so views, `detach` and parameters that `Module.to` rewrites in place
need no care. What Python asks before an operation is dispatched (`.device`, `.to`, `.numpy`, `torch.autocast`,
`torch.Generator`, `torch.cuda`) is patched. Threads that start meanwhile are seen too: each enters a mode of its own.

A tensor that C++ makes inside an operation without saying where has no side yet, and takes the one of what it meets.

Not seen: kernels that go around torch (they get CPU memory; only a missing `.cpu()` before `.numpy()` shows); numbers
that differ on a GPU, autocast's list of operations among them, which is the CPU's here; memory, time, streams, graphs;
several GPUs; operations that CUDA lacks for a type.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CPU, GPU, NOWHERE = "cpu", "cuda", "nowhere"
CUDA = torch.device("cuda", 0)

MAKERS = (
    "arange", "as_tensor", "empty", "empty_strided", "eye", "from_numpy", "full", "linspace", "logspace", "normal",
    "ones", "rand", "randint", "randn", "randperm", "scalar_tensor", "tensor", "tril_indices", "triu_indices", "zeros",
)  # fmt: skip
MAKERS_LIKE = tuple(f"{n}_like" for n in ("empty", "full", "ones", "rand", "randint", "randn", "zeros"))
MAKERS_NEW = tuple(f"new_{n}" for n in ("empty", "full", "ones", "tensor", "zeros"))
COPIES = frozenset({"copy_", "_to_copy", "_copy_from", "_foreach_copy_", "set_"})
"""Operations whose tensors may lie on both sides."""
SCALARS = frozenset({
    "where", "masked_fill", "masked_fill_", "index_fill", "index_fill_", "fill", "fill_", "index_put", "index_put_",
    "clamp", "clamp_", "lerp", "lerp_", "addcmul", "addcdiv", "__and__", "__or__",
})  # fmt: skip
"""Beside pointwise ones, operations that take a CPU tensor without dimensions among CUDA's."""
INDEXING = frozenset({"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"})
"""Operations whose indices may lie on the CPU."""
WAITS = frozenset({
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_consecutive", "unique_dim", "bincount",
    "equal", "is_nonzero", "histc", "repeat_interleave", "item",
})  # fmt: skip
"""Operations whose result, or its size, the CPU waits for."""
PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward"})

RAW_TO, RAW_NUMPY, RAW_DEVICE = Tensor.to, Tensor.numpy, torch._C.TensorBase.device.__get__
RawGenerator = torch.Generator


def side_of(device: Any) -> str:
    """The side that a device's name means."""
    return GPU if torch.device(device).type == "cuda" else CPU


class PretendGenerator(torch.Generator):
    """A generator of the CPU's numbers that says where it is."""

    sides: ClassVar[dict[int, str]] = {}
    """By address: the dispatcher hands operations another Python object for the same generator."""

    def __new__(cls, device: Any = "cpu") -> PretendGenerator:
        made = super().__new__(cls)
        cls.sides[made._cdata] = side_of(device)
        return made

    def __init__(self, device: Any = "cpu") -> None:
        pass

    @classmethod
    def side(cls, generator: torch.Generator) -> str:
        return cls.sides.get(generator._cdata, CPU)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA if self.side(self) == GPU else torch.device("cpu")


class Across(torch.autograd.Function):
    """A copy on the other side; its gradient comes back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gpu: PretendGPU, side: str) -> Tensor:
        ctx.gpu, ctx.home = gpu, gpu.side(x)
        return gpu.put(RAW_TO(x, dtype=x.dtype, copy=True), side)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return ctx.gpu.put(RAW_TO(grad, dtype=grad.dtype, copy=True), ctx.home), None, None


class OneThread(TorchDispatchMode):
    """The mode that a thread enters; all of them ask one GPU."""

    def __init__(self, gpu: PretendGPU) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.gpu.run(func, args, dict(kwargs or {}))


class PretendGPU:
    """Enter it around code that is told to use `cuda`.

    Attributes:
        events: how often (kind, operation, place in the code) happened: `wait`, or `copy` between the two sides.
        products: how often a product of (forward or backward, type) was computed on the GPU.
    """

    def __init__(self) -> None:
        self.events: Counter[tuple[str, str, str]] = Counter()
        self.products: Counter[tuple[str, str]] = Counter()
        self._sides: dict[int, tuple[StorageWeakRef, str]] = {}
        self._sweep_at = 4096
        self._here = threading.local()
        self._entered = contextlib.ExitStack()

    # ------------------------------------------------------------------ where tensors lie

    def side(self, x: Tensor) -> str:
        """CPU, GPU or NOWHERE."""
        try:
            found = self._sides.get(x.untyped_storage()._cdata)
        except (NotImplementedError, RuntimeError):  # sparse tensors and functorch's wrappers have no storage
            return NOWHERE
        return found[1] if found else CPU

    def put(self, x: Tensor, side: str) -> Tensor:
        """Says where a tensor's storage lies; the tensor."""
        with contextlib.suppress(NotImplementedError, RuntimeError):
            storage = x.untyped_storage()
            if side == CPU:
                self._sides.pop(storage._cdata, None)
            else:  # the weak reference keeps the address from being given to another storage
                self._sides[storage._cdata] = StorageWeakRef(storage), side
            if len(self._sides) > self._sweep_at:
                self._sides = {k: v for k, v in list(self._sides.items()) if not v[0].expired()}
                self._sweep_at = max(4096, 2 * len(self._sides))
        return x

    def move(self, x: Tensor, side: str) -> Tensor:
        """A copy on the other side."""
        self._note("copy", f"{self.side(x)} to {side}")
        if x.requires_grad and torch.is_grad_enabled():
            return Across.apply(x, self, side)
        return self.put(RAW_TO(x, dtype=x.dtype, copy=True), side)

    # ------------------------------------------------------------------ operations

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """One operation, as the dispatcher hands it over."""
        name = func._schema.name.split("::")[-1]
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        asked = kwargs.get("device")
        if asked is not None and torch.device(asked).type == "meta":
            return func(*args, **kwargs)
        if asked is not None and side_of(asked) == GPU:
            where, kwargs["device"] = GPU, torch.device("cpu")
        elif tensors:
            where = self._common(func, name, args, tensors)
        else:
            where = CPU if getattr(self._here, "said", 0) else NOWHERE
        for g in (*args, *kwargs.values()):
            if isinstance(g, RawGenerator) and where not in (NOWHERE, PretendGenerator.side(g)):
                found = PretendGenerator.side(g)
                raise RuntimeError(f"Expected a '{where}' device type for generator but found '{found}' ({name})")
        if where == GPU:
            self._watch(name, args, tensors)
        out = func(*args, **kwargs)
        if name not in COPIES or name == "_to_copy":
            for t in tree_leaves(out):
                if isinstance(t, Tensor) and (where != CPU or self.side(t) == NOWHERE):
                    self.put(t, where)
        return out

    def _common(self, func: Any, name: str, args: Any, tensors: list[Tensor]) -> str:
        """The side that all of an operation's tensors lie on."""
        if name in COPIES:
            sides = [self.side(t) for t in tensors[:2]]
            if set(sides) == {CPU, GPU}:
                self._note("copy", f"{sides[1]} to {sides[0]}")
            if sides[0] == NOWHERE and len(sides) > 1:
                self.put(tensors[0], sides[1])
            return sides[0]
        if name.startswith("_foreach"):  # pair by pair, which the lists of an optimiser may mix
            return GPU if any(self.side(t) == GPU for t in tensors) else CPU
        scalars = torch.Tag.pointwise in func.tags or name in SCALARS
        indices = {id(t) for t in args[1] if isinstance(t, Tensor)} if name in INDEXING else set[int]()
        found: dict[str, Tensor] = {}
        for t in tensors:
            side = self.side(t)
            if side == NOWHERE or (side == CPU and ((scalars and t.ndim == 0) or id(t) in indices)):
                continue
            found.setdefault(side, t)
        if len(found) > 1:
            told = ", ".join(f"{s} {tuple(t.shape)} {t.dtype}" for s, t in found.items())
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two: {told} ({name})"
            )
        if found:
            return next(iter(found))
        return CPU if any(self.side(t) == CPU for t in tensors) else NOWHERE

    def _watch(self, name: str, args: Any, tensors: list[Tensor]) -> None:
        by_mask = name in INDEXING and any(
            isinstance(t, Tensor) and t.dtype in (torch.bool, torch.uint8) for t in tree_leaves(args[1:2])
        )
        if name in WAITS or by_mask:
            self._note("wait", name)
        if name in PRODUCTS:
            way = "backward" if torch._C._current_graph_task_id() != -1 else "forward"
            self.products[way, str(tensors[0].dtype).removeprefix("torch.")] += 1

    def _note(self, kind: str, what: str) -> None:
        frame, place = sys._getframe(1), "?"
        while frame is not None:
            path = frame.f_code.co_filename
            if "/maskwright/" in path and "site-packages" not in path:
                place = f"{path.rsplit('/', 1)[-1]}:{frame.f_lineno}"
                break
            frame = frame.f_back  # type: ignore[assignment]
        self.events[kind, what, place] += 1

    # ------------------------------------------------------------------ what Python asks

    def __enter__(self) -> PretendGPU:
        _device_constructors()  # torch remembers what it finds: what is about to be patched must not be that
        self._patch()
        self._entered.enter_context(OneThread(self))
        return self

    def __exit__(self, *error: Any) -> None:
        self._entered.close()

    def _patch(self) -> None:
        patch = lambda *a: self._entered.enter_context(mock.patch.object(*a))  # noqa: E731
        for name, one in self._tensor_methods().items():
            patch(Tensor, name, one)
        for name in MAKERS_NEW:
            patch(Tensor, name, self._beside(getattr(Tensor, name)))
        for name in MAKERS_LIKE:
            patch(torch, name, self._beside(getattr(torch, name)))
        for name in MAKERS:
            patch(torch, name, self._maker(getattr(torch, name)))
        patch(torch, "Generator", PretendGenerator)
        enabled, typed = torch.is_autocast_enabled, torch.get_autocast_dtype
        cast = functools.partial(self._autocast, enabled, typed)
        patch(torch, "autocast", cast)
        patch(torch.amp, "autocast", cast)
        patch(torch, "is_autocast_enabled", lambda kind="cuda": kind == "cuda" and enabled("cpu"))
        patch(torch, "get_autocast_dtype", lambda kind: typed("cpu" if kind == "cuda" else kind))
        answers = {
            "is_available": True, "device_count": 1, "current_device": 0, "is_bf16_supported": True,
            "get_device_capability": (9, 0), "get_device_name": "pretended", "is_current_stream_capturing": False,
            "_lazy_init": None, "set_device": None, "empty_cache": None, "synchronize": None, "manual_seed": None,
            "manual_seed_all": None,
        }  # fmt: skip
        for name, answer in answers.items():
            patch(torch.cuda, name, lambda *a, answer=answer, **k: answer)
        patch(torch.accelerator, "is_available", lambda: False)  # optimisers would ask it for a stream
        real_run, gpu = threading.Thread.run, self

        def run(thread: threading.Thread) -> None:
            with OneThread(gpu):
                real_run(thread)

        patch(threading.Thread, "run", run)

    def _tensor_methods(self) -> dict[str, Any]:
        on = lambda x: self.side(x) == GPU  # noqa: E731
        raw_array, raw_copy = Tensor.__array__, Tensor.__deepcopy__

        def to(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            copy = kwargs.pop("copy", False)
            if args and isinstance(args[0], Tensor):
                device, dtype, layout = args[0].device, args[0].dtype, kwargs.get("memory_format")
            else:
                device, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
            if device is not None and device.type == "meta":
                return RAW_TO(x, device=device, dtype=dtype)
            if device is not None:
                target = side_of(device)
                if self.side(x) == NOWHERE:
                    self.put(x, target)
                elif self.side(x) != target:
                    x, copy = self.move(x, target), False
            form = {} if layout is None else {"memory_format": layout}
            if dtype is None and not form and not copy:
                return x
            return RAW_TO(x, dtype=dtype or x.dtype, copy=copy, **form)

        def as_array(raw: Callable[..., Any]) -> Callable[..., Any]:
            def asked(x: Tensor, *args: Any, **kwargs: Any) -> Any:
                if on(x):
                    raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
                return raw(x, *args, **kwargs)

            return asked

        def pin(x: Tensor) -> Tensor:
            if on(x):
                raise RuntimeError("cannot pin a tensor of cuda: only dense CPU tensors can be pinned")
            return x.clone()

        return {
            "device": property(lambda x: CUDA if on(x) else RAW_DEVICE(x)), "is_cuda": property(on), "to": to,
            "is_cpu": property(lambda x: not on(x)), "get_device": lambda x: 0 if on(x) else -1, "pin_memory": pin,
            "cpu": lambda x, *a, **k: to(x, "cpu", **k), "cuda": lambda x, *a, **k: to(x, "cuda"),
            "numpy": as_array(RAW_NUMPY), "__array__": as_array(raw_array),
            "__deepcopy__": lambda x, memo: self.put(raw_copy(x, memo), self.side(x)),
        }  # fmt: skip

    def _maker(self, raw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Makers without tensors: what they make lies on the CPU unless a device is said."""

        @functools.wraps(raw)
        def make(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
            if raw.__name__ in ("tensor", "as_tensor"):
                made = raw(*args, **kwargs)
                return made if device is None else made.to(device)
            self._here.said = getattr(self._here, "said", 0) + 1
            try:
                return raw(*args, **kwargs, **({} if device is None else {"device": device}))
            finally:
                self._here.said -= 1

        return make

    def _beside(self, raw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Makers from a tensor: what they make lies beside it unless a device is said."""

        @functools.wraps(raw)
        def make(x: Tensor, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
            made = raw(x, *args, **kwargs)
            return self.put(made, self.side(x) if device is None else side_of(device))

        return make

    @staticmethod
    @contextlib.contextmanager
    def _played(enabled: Any, typed: Any, dtype: torch.dtype, on: bool) -> Iterator[None]:
        """Autocast of the GPU by the CPU's, whose own functions are patched."""
        before = enabled("cpu"), typed("cpu")
        torch.set_autocast_enabled("cpu", on)
        torch.set_autocast_dtype("cpu", dtype)
        torch.autocast_increment_nesting()
        try:
            yield
        finally:
            if torch.autocast_decrement_nesting() == 0:
                torch.clear_autocast_cache()
            torch.set_autocast_enabled("cpu", before[0])
            torch.set_autocast_dtype("cpu", before[1])

    def _autocast(
        self,
        is_on: Any,
        typed: Any,
        device_type: str,
        dtype: Any = None,
        enabled: bool = True,
        cache_enabled: Any = None,
    ) -> Any:
        if device_type != "cuda":  # without effect on what lies on a GPU
            return contextlib.nullcontext()
        return self._played(is_on, typed, dtype or torch.bfloat16, enabled)
