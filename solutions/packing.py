"""Values on the wire between the judge and the process of a submission (`wire.py`): what of them is JSON, and what stays.

What is not plain stays where it is: of a function the other end gets a handle that calls back, of a `torch.nn.Module` a
copy with the same parameters (known layers) or a mirror whose forward calls back.
"""
import json
import re

import numpy
import torch
from torch import nn

MOST = 16_000_000  # bytes of one message
DEEP = 60          # levels of nesting
LAYERS = {"Linear": ("in_features", "out_features"), "BatchNorm1d": ("num_features",), "Dropout": ("p",),
          "ReLU": (), "Identity": (), "Sigmoid": (), "Tanh": (), "Sequential": ()}  # with their arguments


class Gone(Exception):
    """The other end has ended, or sent what is no message."""


class Remote:
    """A function of the other end."""

    def __init__(self, wire, target: dict):
        self.wire, self.target = wire, target

    def __call__(self, *args, **kwargs):
        return self.wire.call(self.target, args, kwargs)


class Mirror(nn.Module):
    """A module of the other end: its parameters are here, its forward is there."""

    def __init__(self, wire, key: int, state: dict):
        super().__init__()
        self.wire, self.key = [wire], key  # in a list, or nn.Module would look into it
        for name, value, requires in state["params"]:
            *path, last = name.split(".")
            if not all(re.fullmatch(r"\w{1,40}", part) for part in (*path, last)) or len(path) > 8:
                raise Gone("a parameter's name is none")
            place = self
            for part in path:
                if part not in place._modules:
                    place.add_module(part, nn.Module())
                place = place._modules[part]
            place.register_parameter(last, nn.Parameter(value, requires_grad=bool(requires) and value.is_floating_point()))

    def forward(self, *args, **kwargs):
        wire = self.wire[0]
        return wire.call({"module": self.key}, args, kwargs, modules=[self])


def layer(spec: dict) -> nn.Module:
    """A module of LAYERS from its description."""
    if spec["kind"] == "Sequential":
        return nn.Sequential(*map(layer, spec["inside"]))
    names = LAYERS[spec["kind"]]
    extra = {"bias": spec["bias"]} if spec["kind"] == "Linear" else {}
    return getattr(nn, spec["kind"])(**{name: spec[name] for name in names}, **extra)


def described(module: nn.Module) -> dict | None:
    """Of a module of LAYERS what `layer` needs; None of any other."""
    kind = type(module).__name__
    if kind not in LAYERS or type(module) is not getattr(nn, kind):
        return None
    if kind == "Sequential":
        inside = [described(one) for one in module]
        return None if None in inside else {"kind": kind, "inside": inside}
    found = {"kind": kind, **{name: getattr(module, name) for name in LAYERS[kind]}}
    return found | ({"bias": module.bias is not None} if kind == "Linear" else {})


class Pack:
    """Values on their way out: JSON, with the tensors in a list."""

    def __init__(self, wire):
        self.wire, self.tensors, self.inputs, self.outputs, self.work = wire, [], [], [], 0

    def put(self, value, outputs: bool = False, deep: int = 0):
        self.work += 1
        if deep > DEEP or self.work > 2_000_000:
            return {"t": "other", "of": "structure without an end"}
        if value is None or type(value) in (bool, str, float):
            return value
        if type(value) is int:
            return value if abs(value) < 10 ** 300 else {"t": "other", "of": "huge number"}
        if isinstance(value, numpy.generic):
            return self.put(value.item(), outputs, deep + 1)
        if isinstance(value, bool | int | float | str):
            for kind in (bool, int, float, str):
                if isinstance(value, kind):
                    return self.put(kind(value), outputs, deep + 1)
        if isinstance(value, torch.Tensor):
            return self._tensor(value, outputs)
        if isinstance(value, numpy.ndarray):
            try:
                return self._tensor(torch.from_numpy(value.copy()), outputs)
            except (TypeError, ValueError):
                return {"t": "other", "of": "ndarray"}
        if isinstance(value, dict):
            pairs = [[self.put(key, outputs, deep + 1), self.put(one, outputs, deep + 1)] for key, one in value.items()]
            return {"t": "dict", "v": pairs}
        if isinstance(value, list | tuple | set | frozenset | range):
            kind = "tuple" if isinstance(value, tuple) else "list"
            return {"t": kind, "v": [self.put(one, outputs, deep + 1) for one in value]}
        if isinstance(value, nn.Module):
            self.wire._know(value)
            if isinstance(value, Mirror):
                return {"t": "module", "yours": value.key}
            yours = next((key for key, one in self.wire.theirs.items() if one is value), None)
            return {"t": "module", "yours": yours} if yours is not None else {"t": "module", "mine": self._key(value)}
        if isinstance(value, Remote):
            return {"t": "function", "yours": value.target}
        if hasattr(value, "__next__") and hasattr(value, "__iter__"):
            items = [one for one, _ in zip(value, range(100_000))]
            return {"t": "generator", "v": [self.put(one, outputs, deep + 1) for one in items]}
        if callable(value):
            key = next((key for key, one in self.wire.functions.items() if one is value), len(self.wire.functions))
            self.wire.functions[key] = value
            return {"t": "function", "mine": key}
        if hasattr(value, "__iter__") and hasattr(value, "__len__"):  # dict views, pandas' columns
            return {"t": "list", "v": [self.put(one, outputs, deep + 1) for one in value]}
        return {"t": "other", "of": type(value).__name__}

    def _key(self, module) -> int:
        for key, one in self.wire.mine.items():
            if one is module:
                return key
        key = len(self.wire.mine)
        self.wire.mine[key] = module
        return key

    def _tensor(self, value, outputs: bool):
        for module in self.wire.live:
            for name, one in module.named_parameters():
                if one is value:
                    return {"t": "parameter", "of": self.put(module), "name": name}
        requires = bool(value.requires_grad)
        if requires and outputs:
            self.outputs.append(value)
        elif requires:
            self.inputs.append(value)
        return {"t": "tensor", "i": self._data(value), "g": requires}

    def _data(self, value) -> int:
        value = value.detach().cpu().to_dense() if value.layout is not torch.strided else value.detach().cpu()
        if value.numel() * value.element_size() > MOST:
            raise ValueError(f"a tensor of more than {MOST // 1_000_000} MB")
        if value.dtype in (torch.complex64, torch.complex128):
            value = torch.view_as_real(value.resolve_conj())
        self.tensors.append(torch.empty(value.shape, dtype=value.dtype).copy_(value))
        return len(self.tensors) - 1

    def states(self) -> list:
        """The live modules: whose they are, how to make one, parameters, buffers, which parts are training."""
        found = []
        for module in self.wire.live:
            place = self.put(module)
            state = {"params": [[name, self._data(one), one.requires_grad] for name, one in module.named_parameters()],
                     "buffers": [[name, self._data(one)] for name, one in module.named_buffers()],
                     "training": [[name, one.training] for name, one in module.named_modules()]}
            found.append({"place": place, "spec": described(module) if "mine" in place else None, "state": state})
        return found

    def parameters(self) -> list:
        return [one for module in self.wire.live for one in module.parameters() if one.requires_grad]

    def digest(self, values):
        """Something that differs when the values do."""
        packed = Pack(self.wire)
        body = packed.put(values)
        return json.dumps(body), [(one.dtype, one.shape, one.numpy().tobytes() if one.dtype is not torch.bfloat16
                                   else str(one.tolist())) for one in packed.tensors]


class Unpack:
    """Values on their way in. Raises Gone for what `Pack` does not make."""

    def __init__(self, wire, tensors: list):
        self.wire, self.tensors, self.leaves, self.differentiable = wire, tensors, [], []

    def get(self, value):
        try:
            return self._get(value, 0)
        except (Gone, MemoryError):
            raise
        except Exception as error:
            raise Gone(f"no value: {type(error).__name__}") from None

    def _get(self, value, deep: int):
        if deep > DEEP + 5:
            raise Gone("too deep")
        if not isinstance(value, dict):
            if isinstance(value, list):
                raise Gone("a bare list")
            return value
        kind = value["t"]
        if kind in ("list", "tuple", "generator"):
            items = [self._get(one, deep + 1) for one in value["v"]]
            return items if kind == "list" else tuple(items) if kind == "tuple" else iter(items)
        if kind == "dict":
            return {self._get(key, deep + 1): self._get(one, deep + 1) for key, one in value["v"]}
        if kind == "tensor":
            found = self.tensors[int(value["i"])]
            if value["g"] and found.is_floating_point():
                found = found.detach().clone().requires_grad_(True)
                self.leaves.append(found)
                self.differentiable.append(found)
            return found
        if kind == "parameter":
            module = self._get(value["of"], deep + 1)
            return dict(module.named_parameters())[value["name"]]
        if kind == "module":
            return self.wire.mine[value["yours"]] if "yours" in value else self.wire.theirs[value["mine"]]
        if kind == "function":
            if "yours" in value:
                target = value["yours"]
                return self.wire.functions[target["mine"]] if "mine" in target else Remote(self.wire, target)
            return Remote(self.wire, {"mine": int(value["mine"])})
        if kind == "other":
            return type(re.sub(r"\W", "", str(value["of"]))[:60] or "something", (), {})()
        raise Gone("an unknown kind of value")

    def take(self, modules) -> None:
        """Make the modules that are new, and bring all to the state in which the other end has them."""
        try:
            for one in modules or ():
                place, state = one["place"], one["state"]
                state = {**state, "params": [[str(name), self.tensors[int(i)], bool(requires)]
                                             for name, i, requires in state["params"]]}
                if "yours" in place:
                    module = self.wire.mine[place["yours"]]
                elif place["mine"] in self.wire.theirs:
                    module = self.wire.theirs[place["mine"]]
                elif self.wire.names is None:  # the judge makes none of the other end's kinds
                    module = Mirror(self.wire, int(place["mine"]), state)
                    self.wire.theirs[place["mine"]] = module
                else:
                    module = layer(one["spec"]) if one["spec"] else Mirror(self.wire, int(place["mine"]), state)
                    self.wire.theirs[place["mine"]] = module
                self.wire._know(module)
                settle(module, state, {name: self.tensors[int(i)] for name, i in state["buffers"]})
        except Gone:
            raise
        except Exception as error:
            raise Gone(f"no module: {type(error).__name__}") from None


def settle(module: nn.Module, state: dict, buffers: dict) -> None:
    own, parts = dict(module.named_parameters()), dict(module.named_modules())
    for name, value, requires in state["params"]:
        if name in own and own[name].shape == value.shape:
            if own[name].dtype != value.dtype or not torch.equal(own[name].detach(), value):
                own[name].data = value.clone()
            own[name].requires_grad_(requires)
    for name, one in module.named_buffers():
        if name in buffers and buffers[name].shape == one.shape:
            one.data = buffers[name].clone()
    for name, training in state["training"]:
        if name in parts:
            parts[name].training = bool(training)


def adjust(old, new) -> None:
    """Bring arguments to the state in which the callee left them: tensors, lists and dicts, in place."""
    if isinstance(old, torch.Tensor):
        if isinstance(new, torch.Tensor) and old.shape == new.shape:
            if not torch.equal(old.detach(), new.detach().to(old.dtype)):
                old.data = new.detach().to(old.dtype).clone()
            if old.is_leaf and old.is_floating_point():
                old.requires_grad_(new.requires_grad)
    elif isinstance(old, list) and isinstance(new, list) or isinstance(old, dict) and isinstance(new, dict):
        same = len(old) == len(new) if isinstance(old, list) else list(old) == list(new)
        if not same:
            old.clear()
            (old.extend if isinstance(old, list) else old.update)(new)
            return
        for key in range(len(old)) if isinstance(old, list) else list(old):
            if isinstance(old[key], list | dict | tuple | torch.Tensor):
                adjust(old[key], new[key])
            elif not callable(old[key]) and not isinstance(old[key], nn.Module):
                old[key] = new[key]
    elif isinstance(old, tuple) and isinstance(new, tuple):
        for one, other in zip(old, new):
            adjust(one, other)


def replaced(value, by_id: dict):
    """The structure with some of its tensors replaced."""
    if isinstance(value, torch.Tensor):
        return by_id.get(id(value), value)
    if isinstance(value, list | tuple):
        return type(value)(replaced(one, by_id) for one in value)
    if isinstance(value, dict):
        return {key: replaced(one, by_id) for key, one in value.items()}
    return value
