"""A CUDA device pretended on the CPU, so that tests see what a GPU would refuse.

Tensors are ordinary ones with real numbers, and each storage is marked with the device on which it
would lie. A mode above autograd fakes devices, factories and generators; one below it enforces the
rules: no operation mixes devices, no stream overtakes another, and while a graph is captured
nothing is computed, nothing waits for the device, no generator is seeded and nothing draws from one
that the graph does not know. A replayed graph repeats its operations on the same memory. As an
Apple device ("mps") it refuses float64 instead.

It stands on hooks of torch that may move: `unsupported` says so in a line.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

ROOT = str(Path(__file__).resolve().parent.parent)
CPU = torch.device("cpu")
NOWHERE = torch.device("meta")  # made inside an operation: goes with either device
Base = torch.Generator


def words(text):
    return frozenset(text.split())


FREE = words(  # nothing runs on the device for them
    "view _unsafe_view t transpose permute slice select expand unsqueeze squeeze detach alias "
    "as_strided split split_with_sizes diagonal unbind lift_fresh _reshape_alias empty empty_like "
    "new_empty empty_strided unfold is_same_size new_empty_strided view_as_real"
)
WAITS = words(  # the answer, or its size, is needed on the host
    "_local_scalar_dense nonzero masked_select equal is_nonzero _unique2 unique_dim "
    "_linalg_eigh _linalg_svd linalg_qr linalg_lstsq _linalg_check_errors"
)
MOVES = {"copy_", "_to_copy", "lift_fresh", "lift_fresh_copy", "detach", "alias", "set_"}
LENIENT = ("_foreach", "_fused", "where", "masked_fill", "index_put")
FACTORIES = words(
    "zeros ones empty full rand randn randint randperm arange linspace logspace eye tensor "
    "as_tensor scalar_tensor normal from_numpy tril_indices triu_indices"
)
RANDOM = words(
    "rand randn randint randperm normal multinomial bernoulli uniform_ normal_ random_ "
    "exponential_ bernoulli_"
)


class Generator(Base):
    """A generator that says that it is where it was asked for."""

    def __new__(cls, device="cpu"):
        return Base.__new__(cls, "cpu")

    def __init__(self, device="cpu"):
        self._where = PRETENDED[-1].place(device) if PRETENDED else CPU

    @property
    def device(self):
        return self._where

    def manual_seed(self, seed):
        if PRETENDED and PRETENDED[-1].graph and self._where != CPU:
            PRETENDED[-1].fail("Cannot seed a generator during CUDA graph capture")
        return Base.manual_seed(self, seed)


class Stream:
    """`torch.cuda.Stream`: has to wait for what was begun on the others of its device."""

    def __init__(self, device="cuda"):
        self.device, self.begun, self.waited = PRETENDED[-1].place(device), 0, {}
        PRETENDED[-1].streams.append(self)

    def wait_stream(self, other):
        for stream, begun in {**other.waited, other: other.begun}.items():
            self.waited[stream] = max(begun, self.waited.get(stream, 0))


class Graph:
    """`torch.cuda.CUDAGraph`: the operations of a capture, repeated on the same memory."""

    def __init__(self):
        self.operations, self.touched, self.generators = [], {}, []
        self.failed = False

    def register_generator_state(self, generator):
        if generator.device == CPU:
            raise RuntimeError("a graph takes generators on the device")
        self.generators.append(generator)

    def replay(self):
        PRETENDED[-1].replays += 1
        PRETENDED[-1].begin(self.device)
        with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
            for function, args, kwargs, results in self.operations:
                again = tree_leaves(function(*args, **kwargs))
                before = {t.untyped_storage()._cdata for t in tensors_in((args, kwargs))}
                for old, new in zip(results, again, strict=True):
                    if torch.is_tensor(old) and old.untyped_storage()._cdata not in before:
                        old.copy_(new)

    def forget(self):
        """Leaves nothing of a capture behind: it has computed nothing."""
        with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
            for storage, content in self.touched.values():
                storage.copy_(content)
            for _, args, kwargs, results in self.operations:
                before = {t.untyped_storage()._cdata for t in tensors_in((args, kwargs))}
                for made in tensors_in(results):
                    if made.untyped_storage()._cdata not in before and made.is_floating_point():
                        made.fill_(torch.nan)


def tensors_in(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def caller():
    """`file:line` of the innermost frame in this project but this file."""
    frame = sys._getframe(1)
    while frame:
        name = frame.f_code.co_filename
        if name.startswith(ROOT) and name != __file__:
            return f"{name[len(ROOT) + 1 :]}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


class Pretended:
    """The device; a context manager. `count` devices of a `kind`, "cuda" or "mps"."""

    def __init__(self, kind="cuda", count=1):
        self.kind, self.count, self.current = kind, count, 0
        self.launches, self.waits = 0, Counter()
        self.graph = None  # while one is captured
        self.graphs = self.replays = 0  # so far
        self.streams, self.on = [], {}  # all; the current one of each device
        self.made_on = None  # device of the tensor that is being made
        self.marks = {}

    def place(self, device):
        """The device that a call means; "cuda" alone is the current one."""
        device = torch.device(device)
        if device.type == "cuda" and device.index is None:
            return torch.device("cuda", self.current)
        return torch.device("mps", 0) if device.type == "mps" else device

    def of(self, tensor):
        """Where a tensor lies."""
        return self.marks.get(tensor.untyped_storage()._cdata, (CPU,))[0]

    def mark(self, tensor, device):
        storage = tensor.untyped_storage()
        if device.type == "mps" and tensor.dtype in (torch.float64, torch.complex128):
            raise TypeError("the MPS framework doesn't support float64")
        if device == CPU:
            self.marks.pop(storage._cdata, None)
        else:  # the weak reference keeps the address from being used again
            self.marks[storage._cdata] = (device, StorageWeakRef(storage))
        if len(self.marks) > 20_000:
            self.marks = {k: mark for k, mark in self.marks.items() if not mark[1].expired()}

    def wait(self, what):
        """The host waits for the device, which a capture does not survive."""
        self.waits[f"{caller()} {what}"] += 1
        if self.graph:
            self.fail(f"{what} is not permitted while a graph is captured")

    def fail(self, why):
        """Refuses something, after which a capture is of no use."""
        if self.graph:
            self.graph.failed = True
        raise RuntimeError(why)

    def launch(self, function, where):
        """Something runs on the device."""
        self.launches += 1
        if self.graph and where.index != self.current:
            self.fail(f"{function} runs on {where}, the graph is captured on another")
        if self.kind == "cuda":
            self.begin(where)

    def begin(self, where=None):
        """On the current stream, which must have waited for the others."""
        stream = self.current_stream(where)
        for other in self.streams:
            late = other.begun > stream.waited.get(other, 0)
            if other is not stream and other.device == stream.device and late:
                self.fail("a stream has not waited for another")
        stream.begun += not self.graph  # since a capture begins nothing

    def __enter__(self):
        PRETENDED.append(self)
        self.stack = ExitStack()
        for owner, name, value in self.patches():
            self.stack.enter_context(mock.patch.object(owner, name, value))
        self.stack.enter_context(Functions(self))
        self.stack.enter_context(Operations(self))
        return self

    def __exit__(self, *error):
        self.stack.__exit__(*error)
        PRETENDED.pop()

    def patches(self):
        module_to = torch.nn.Module.to

        def to(module, *args, **kwargs):
            if args and isinstance(args[0], torch.Tensor):
                args = (args[0].device, args[0].dtype, *args[1:])
            return module_to(module, *args, **kwargs)

        def health(optimiser):
            lacking = [g for g in optimiser.param_groups if not g.get("capturable", True)]
            if self.graph and lacking:
                self.fail("capture of step(), but param_groups' capturable is False")

        def grouped(lists, with_indices=False):
            found = group(lists, with_indices)
            return {(self.of(tensors[0][0]), key[1]): (tensors, where)
                    for key, (tensors, where) in found.items()}  # fmt: skip

        group = torch._C._group_tensors_by_device_and_dtype
        yield torch._C, "_group_tensors_by_device_and_dtype", grouped
        yield torch, "Generator", Generator
        yield torch.nn.Module, "to", to
        for name in ("_cuda_graph_capture_health_check", "_accelerator_graph_capture_health_check"):
            if hasattr(torch.optim.Optimizer, name):
                yield torch.optim.Optimizer, name, health
        if self.kind == "mps":
            there = torch.backends.mps.is_available  # torch._dynamo looks at what it wraps
            yield torch.backends.mps, "is_available", functools.wraps(there)(lambda: True)
            return
        cuda = torch.cuda
        yield cuda, "is_available", lambda: True
        yield cuda, "device_count", lambda: self.count
        yield cuda, "current_device", lambda: self.current
        yield cuda, "get_device_name", lambda device=None: "pretended"
        yield cuda, "is_current_stream_capturing", lambda: self.graph is not None
        yield cuda, "_lazy_init", lambda: None
        yield cuda, "get_rng_state", lambda device=None: torch.zeros(16, dtype=torch.uint8)
        yield cuda, "set_rng_state", lambda *a: self.graph and self.fail("seeded while captured")
        yield cuda, "synchronize", lambda device=None: self.wait("synchronize")
        yield cuda, "device", self.device
        yield cuda, "Stream", Stream
        yield cuda, "current_stream", self.current_stream
        yield cuda, "stream", self.stream
        yield cuda, "CUDAGraph", Graph
        yield cuda, "graph", self.capture

    @contextmanager
    def device(self, device):
        before, self.current = self.current, self.place(device).index
        try:
            yield
        finally:
            self.current = before

    def current_stream(self, device=None):
        device = self.place(device or "cuda")
        if device not in self.on:
            self.on[device] = Stream(device)  # the default one
        return self.on[device]

    @contextmanager
    def stream(self, stream):
        before, current = self.current_stream(stream.device), self.current
        self.on[stream.device], self.current = stream, stream.device.index
        try:
            yield
        finally:
            self.on[stream.device], self.current = before, current

    @contextmanager
    def capture(self, graph, pool=None, stream=None):
        self.wait("synchronize")
        stream = stream or Stream()
        graph.device = stream.device
        with self.stream(stream):
            seeds = [generator.get_state() for generator in graph.generators]
            self.graph, self.graphs = graph, self.graphs + 1
            try:
                yield
            finally:
                self.graph = None
                graph.forget()
                for generator, seed in zip(graph.generators, seeds, strict=True):
                    generator.set_state(seed)
        if graph.failed:
            raise RuntimeError("operation failed due to a previous error during capture")


PRETENDED: list[Pretended] = []


class Functions(TorchFunctionMode):
    """Above autograd: devices, factories, generators, moves."""

    def __init__(self, pretended):
        super().__init__()
        self.pretended = pretended

    def __torch_function__(self, function, types, args=(), kwargs=None):
        p, kwargs = self.pretended, dict(kwargs or {})
        name = getattr(function, "__name__", "")
        me = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if name == "_parse_to":
            return function(*args, **kwargs)
        if name == "__get__":
            attribute = getattr(getattr(function, "__self__", None), "__name__", "")
            if attribute == "device":
                return CPU if p.of(me) == NOWHERE else p.of(me)
            if attribute in ("is_cuda", "is_cpu", "is_mps"):
                return p.of(me).type == attribute[3:]
            return function(*args, **kwargs)
        if me is not None:
            here = p.of(me)
            if name in ("numpy", "__array__") and here not in (CPU, NOWHERE):
                raise TypeError(f"can't convert {here} device type tensor to numpy.")
            if name == "tolist" and here != CPU:
                p.wait(name)
            if name in ("to", "cpu", "cuda", "double"):
                return self.moved(name, me, args[1:], kwargs)
            if name == "pin_memory":
                pinned = function.__get__(me) and me.clone()
                pinned.is_pinned_here = True
                return pinned
        if name in RANDOM:
            self.drawn(me, kwargs)
        if name in ("_make_subclass", "__deepcopy__"):
            here, result = p.of(args[1] if me is None else me), function(*args, **kwargs)
            p.mark(result, here)
            return result
        wanted = kwargs.get("device")
        if wanted is not None or name in FACTORIES or (me is not None and name.startswith("new_")):
            source = CPU if me is None else p.of(me)
            where = source if wanted is None else p.place(wanted)
            if wanted is not None:
                kwargs["device"] = CPU
            if name in ("tensor", "as_tensor") and CPU == source != where:
                p.wait("a copy to the device")
            before, p.made_on = p.made_on, where
            try:
                result = function(*args, **kwargs)
            finally:
                p.made_on = before
            if isinstance(result, torch.Tensor):
                p.mark(result, where)
            return result
        return function(*args, **kwargs)

    def drawn(self, me, kwargs):
        p, generator = self.pretended, kwargs.get("generator")
        where = p.place(kwargs.get("device") or CPU) if me is None else p.of(me)
        if generator is not None and where != NOWHERE and generator.device != where:
            raise RuntimeError(f"Expected a '{where}' generator but found '{generator.device}'")
        if p.graph and where != CPU and not any(generator is g for g in p.graph.generators):
            p.fail("a draw from a generator that the captured graph does not know")

    def moved(self, name, me, rest, kwargs):
        p = self.pretended
        here, dtype, layout = p.of(me), None, kwargs.pop("memory_format", None)
        copy, asynchronous = kwargs.pop("copy", False), kwargs.get("non_blocking", False)
        where = here
        if name == "cpu":
            where = CPU
        elif name == "cuda":
            where = p.place("cuda")
        elif name == "double":
            dtype = torch.float64
        elif (rest and isinstance(rest[0], torch.Tensor)) or "other" in kwargs:
            other = rest[0] if rest else kwargs["other"]
            where, dtype = p.of(other), other.dtype
        else:
            device, dtype, _, layout = torch._C._nn._parse_to(*rest, **kwargs)
            where = here if device is None else p.place(device)
        if here == NOWHERE:
            here = where
            p.mark(me, here)
        more = {} if layout is None else {"memory_format": layout}
        if where == here:
            result = torch.Tensor.to(me, dtype or me.dtype, copy=copy, **more)
        else:
            if not (asynchronous and getattr(me, "is_pinned_here", False)):
                p.wait("a copy to the host" if where == CPU else "a copy to the device")
            result = torch.Tensor.to(me, dtype or me.dtype, copy=True, **more)
        p.mark(result, where)
        return result


class Operations(TorchDispatchMode):
    """Below autograd: the rules on devices, and what a capture records."""

    def __init__(self, pretended):
        super().__init__()
        self.pretended = pretended

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunction():
            return self.operation(function, args, dict(kwargs or {}))

    def operation(self, function, args, kwargs):
        p, name = self.pretended, function.overloadpacket.__name__
        given = tensors_in((args, kwargs))
        places = [p.of(tensor) for tensor in given]
        on = next((place for place in places if place not in (CPU, NOWHERE)), None)
        if on:
            self.check(function, name, args, kwargs, given, places)
            if name not in FREE:
                p.launch(function, on)
        elif p.made_on not in (None, CPU):
            p.launch(function, p.made_on)
        touched = function._schema.is_mutable and p.graph
        if touched:
            for tensor in given:
                storage = tensor.untyped_storage()
                p.graph.touched.setdefault(storage._cdata, (storage, storage.clone()))
        result = function(*args, **kwargs)
        made = tensors_in(result)
        if p.graph:
            p.graph.operations.append((function, args, kwargs, tree_leaves(result)))
        if not given:
            where = p.made_on or NOWHERE
        elif name.startswith("index") and places[0] != NOWHERE:
            where = places[0]
        else:
            where = on or (CPU if CPU in places else NOWHERE)
        if name != "copy_":
            for tensor in made:
                p.mark(tensor, where)
            if function._schema.is_mutable and on:
                for tensor, place in zip(given, places, strict=True):
                    if place == NOWHERE:
                        p.mark(tensor, on)
        return result

    def check(self, function, name, args, kwargs, given, places):
        p = self.pretended
        if name in WAITS:
            p.wait(name)
        if name.startswith(("index", "_index_put", "_unsafe_index")) and (
            function._schema.arguments[1].name == "indices"
        ):
            for index in (index for index in args[1] if index is not None):
                if p.of(args[0]) == CPU != p.of(index):
                    raise RuntimeError(f"indices should be on the cpu too ({function})")
                if p.of(args[0]) != CPU == p.of(index):
                    p.wait("a copy of an index to the device")
                if index.dtype == torch.bool:
                    p.wait("nonzero of a mask")
            given = tensors_in([args[0], *args[2:]])
        elif name == "copy_":
            if len(set(places) - {NOWHERE}) == 2:
                p.wait("a copy between devices")
            return
        elif name in MOVES:
            return
        lenient = torch.Tag.pointwise in function.tags or name.startswith(LENIENT)
        found = {p.of(t) for t in given if not (lenient and t.dim() == 0 and p.of(t) == CPU)}
        if len(found - {NOWHERE}) > 1:
            names = " and ".join(sorted(map(str, found - {NOWHERE})))
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found {names} ({function})"
            )


def unsupported():
    """Why nothing can be pretended on this torch; None if it can."""
    try:
        with Pretended():
            there = torch.ones(2, device="cuda")
            if str((there + 1).device) != "cuda:0" or str(there.cpu().device) != "cpu":
                return "devices are not pretended"
            for refused in (there.numpy, lambda: there + torch.ones(2)):
                try:
                    refused()
                except (TypeError, RuntimeError):
                    continue
                return "what mixes devices is not refused"
    except Exception as error:
        return f"a hook of torch {torch.__version__} has moved ({error})"
    return None
