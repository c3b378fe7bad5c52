"""A CUDA card that is none: tensors which say that they lie on cuda:0 and are computed on the CPU, for tests without a GPU.

The library's own code for CUDA runs on them. They refuse what a card refuses (tensors of two devices in one operation,
half precision under a norm in single), and what a capture refuses (waiting for it, copies from and to the CPU, chance).
A captured graph is the list of its operations with their tensors: a replay computes these again, and nothing that Python did
beside them; until then, and once the graph is gone, its memory holds NaN.
"""
from contextlib import contextmanager, nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)
# what reads the card's memory to know what to do, so waits for it
WAITS = set("""_local_scalar_dense item equal is_nonzero nonzero masked_select _unique2 unique_dim unique_consecutive
    unique_dim_consecutive bincount histc repeat_interleave _linalg_solve_ex _linalg_eigh _linalg_svd""".split())
CHANCE = set("""uniform_ normal_ normal bernoulli_ bernoulli randn rand randperm randint random_ native_dropout
    multinomial exponential_""".split())
INDEX = "index", "index_put_", "index_put", "_index_put_impl_"
BRINGS = {"_to_copy", "copy_", "_pin_memory"}  # from a device to another


class Refused(RuntimeError):
    """What CUDA would have refused."""


class Card(torch.Tensor):
    """A tensor on the card; `held`: its numbers, on the CPU. C++ takes its device for "meta", which has no driver."""

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, strides=held.stride(), dtype=held.dtype, device="meta",
                                                   storage_offset=held.storage_offset())

    def __init__(self, held):
        self.held = held

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)

    data = property(lambda self: self.detach(), lambda self, other: self._become(other))

    def _become(self, other):
        torch.Tensor.data.__set__(self, other)
        self.held = other.held

    def __repr__(self, **_):
        return f"Card({self.held!r})"

    def numpy(self, **_):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor first.")

    __array__ = numpy

    def __getitem__(self, key):  # C++ would put a list's numbers on the device "meta"
        return super().__getitem__(torch.tensor(key) if isinstance(key, list) else key)

    def tolist(self):
        return self.cpu().tolist()

    def new_tensor(self, data, dtype=None, **_):
        return torch.tensor(data, dtype=dtype or self.dtype, device=CUDA)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


def tensors(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


def held(tree):
    """The same on the CPU alone."""
    return tree_map(lambda x: x.held if isinstance(x, Card) else
                    torch.device("cpu") if isinstance(x, torch.device) and x.type in ("cuda", "meta") else x, tree)


def compute(func, args, kwargs):
    """One operation of torch's, its tensors on the card or not."""
    if func.namespace == "profiler":
        return func(*args, **kwargs)
    name, given, device = func._schema.name.split("::")[1], tensors((args, kwargs)), kwargs.get("device")
    there = [x for x in given if isinstance(x, Card)]
    here = [x for x in given if not isinstance(x, Card)]
    to_card = device is not None and torch.device(device).type in ("cuda", "meta")
    result_there = to_card or bool(there) and device is None
    if name == "copy_":
        result_there = isinstance(args[0], Card)
    if there and here and name not in BRINGS:
        places = tensors(args[1]) if name in INDEX and isinstance(args[0], Card) else ()  # which CUDA takes from the CPU
        if any(x.ndim and not any(x is place for place in places) for x in here):
            raise Refused(f"Expected all tensors to be on the same device, but found cuda:0 and cpu ({func})")
    if there and name == "native_layer_norm" and any(x is not None and x.dtype != args[0].dtype for x in args[2:4]):
        raise Refused(f"expected scalar type {args[0].dtype} but found {args[2].dtype} ({func})")
    graph = Graph.capturing
    if graph:
        graph.check(func, name, there, here, result_there)
    if name == "_pin_memory":
        return args[0].clone()
    a, k = held(args), held(kwargs)
    if graph:
        graph.before(func, a, k)
    with torch.utils._python_dispatch._disable_current_modes():
        out = func(*a, **k)
        if to_card and here and not there and name == "_to_copy" and out is a[0]:
            out = out.clone()
    if graph:
        graph.record(func, a, k, out)
    if not result_there:
        return out if not there else tree_map(lambda x: x, out)
    out = tree_map(lambda x: Card(x) if isinstance(x, torch.Tensor) else x, out)
    return return_and_correct_aliasing(func, args, kwargs, out)


class Driver(TorchDispatchMode):
    """Sees what has no tensor of the card among its arguments: `zeros(…, device="cuda")`, `.to("cuda")`."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


def written(func, args, kwargs) -> list[torch.Tensor]:
    """The tensors that an operation writes into."""
    found = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found += tensors(args[i] if i < len(args) else kwargs.get(argument.name))
    return found


class Graph:
    """Stands in for torch.cuda.CUDAGraph. `replays`: how often each one made was replayed."""
    capturing: "Graph | None" = None
    replays: list[int] = []

    def __init__(self):
        self.work, self.own, self.before_capture, self.number = [], {}, {}, len(Graph.replays)
        Graph.replays.append(0)

    def check(self, func, name, there, here, result_there):
        if name in WAITS and there:
            raise Refused(f"operation not permitted when stream is capturing: {func} waits for the card")
        if name in INDEX and any(x.dtype in (torch.bool, torch.uint8) for x in there[1:]):
            raise Refused(f"operation not permitted when stream is capturing: {func} by truth values waits for the card")
        if name in CHANCE:
            raise Refused(f"{func}: chance in a captured step")
        # numbers of Python's arrive as tensors without dimensions
        if there and not result_there or here and (result_there and name in BRINGS or any(x.ndim for x in here)):
            raise Refused(f"operation not permitted when stream is capturing: {func} of what is on the CPU")

    def before(self, func, args, kwargs):
        for x in written(func, args, kwargs):
            place = x.untyped_storage().data_ptr()
            if place not in self.own and place not in self.before_capture:
                whole = torch.empty(0, dtype=torch.uint8).set_(x.untyped_storage())
                self.before_capture[place] = whole, whole.clone()

    def record(self, func, args, kwargs, out):
        returns = func._schema.returns
        alias = any(r.alias_info is not None for r in returns)
        inputs = {x.untyped_storage().data_ptr() for x in tensors((args, kwargs))}
        fresh = [x for x in tensors(out) if x.untyped_storage().data_ptr() not in inputs]
        for x in fresh:
            self.own[x.untyped_storage().data_ptr()] = x
        if alias and not written(func, args, kwargs):
            return  # a view: it is there
        self.work.append((func, args, kwargs, fresh and out))

    def end(self):
        for whole, before in self.before_capture.values():
            whole.copy_(before)
        self.poison()

    def poison(self):
        for x in self.own.values():
            torch.empty(0, dtype=torch.uint8).set_(x.untyped_storage()).fill_(255)  # NaN, or -1

    def replay(self):
        Graph.replays[self.number] += 1
        with torch.no_grad(), torch.utils._python_dispatch._disable_current_modes():
            for func, args, kwargs, out in self.work:
                again = func(*args, **kwargs)
                for mine, new in zip(tensors(out), tensors(again)):
                    if mine.data_ptr() != new.data_ptr():
                        mine.copy_(new)

    def __del__(self):
        self.poison()


@contextmanager
def capture(graph, stream=None, **_):
    Graph.capturing = graph
    try:
        yield
    finally:
        Graph.capturing = None
        graph.end()


class Stream:
    """Stands in for torch.cuda.Stream: the card's work is done when it is asked for."""

    def __init__(self, device=None):
        self.device, self.waited = device, []

    def wait_stream(self, other):
        self.waited.append(other)


@contextmanager
def a_card(monkeypatch):
    """Inside, "cuda:0" is such a card."""
    from clip_adapter_lite import backbones, devices, training
    main, loaded = Stream(CUDA), backbones.shared_backbone
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    for name, fake in {"CUDAGraph": Graph, "Stream": Stream, "current_stream": lambda device=None: main, "graph": capture,
                       "stream": lambda stream: nullcontext(), "mem_get_info": lambda device=None: (2 ** 33, 2 ** 34),
                       "memory_reserved": lambda device=None: 0, "memory_allocated": lambda device=None: 0,
                       "empty_cache": lambda: None}.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    Graph.replays.clear()
    training._aside.cache_clear()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with Driver():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(False)
        Graph.replays.clear()
        for kept in (devices.must_work, training._aside):
            kept.cache_clear()
        loaded.cache_clear()
