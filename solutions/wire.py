"""The wire between the judge and the process of a submission: calls, plain data and gradients, on a socket.

Both ends run this file. A value is JSON; tensors travel beside it as safetensors; nothing is ever unpickled or
evaluated. What is not plain stays where it is: of a function the other end gets a handle that calls back, of a
`torch.nn.Module` a copy with the same parameters (known layers) or a mirror whose forward calls back. After a call
the caller's own arguments and modules are brought to the state in which the callee left them, so that a change in
place is seen on both sides. Gradients go through a call both ways (`Link`).
"""
import builtins
import json
import random
import re
import struct
from contextlib import contextmanager, nullcontext

import numpy
import torch
from safetensors.torch import load, save
from torch import nn

MOST = 16_000_000  # bytes of one message
DEEP = 60          # levels of nesting
LAYERS = {"Linear": ("in_features", "out_features"), "BatchNorm1d": ("num_features",), "Dropout": ("p",),
          "ReLU": (), "Identity": (), "Sigmoid": (), "Tanh": (), "Sequential": ()}  # with their arguments


class Gone(Exception):
    """The other end has ended, or sent what is no message."""


class Link(torch.autograd.Function):
    """Values that the other end computed, with gradients that it computes."""

    @staticmethod
    def forward(ctx, wire, call, values, *inputs):
        ctx.wire, ctx.call, ctx.shapes = wire, call, [x.shape for x in inputs]
        ctx.set_materialize_grads(False)
        return tuple(value.clone() for value in values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *upstream):
        found = ctx.wire.ask({"do": "gradients", "call": ctx.call}, list(upstream))
        if not isinstance(found, list) or [x is not None and x.shape for x in found] != [
                x is not None and shape for x, shape in zip(found, ctx.shapes)]:
            raise Gone("gradients of the wrong shapes")
        return None, None, None, *found


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


class Wire:
    """One end.

    names: what the other end may call by name, None at the judge's end. around: a context manager, given the names that
    the caller puts others in the place of. other: called with messages that are neither calls nor about gradients.
    """

    def __init__(self, reader, writer, names: dict | None = None, around=nullcontext, other=None):
        self.reader, self.writer, self.names, self.around, self.other = reader, writer, names, around, other
        self.last = self.depth = 0
        self.forget()

    def forget(self) -> None:
        """Let go of everything that was exchanged."""
        self.functions, self.mine, self.theirs, self.kept, self.live = {}, {}, {}, {}, []

    # frames ---------------------------------------------------------------------------------------

    def send(self, message: dict, tensors: list | None = None) -> None:
        body = json.dumps(message).encode()
        data = save({str(i): one for i, one in enumerate(tensors)}) if tensors else b""
        if len(body) + len(data) > MOST:
            raise ValueError(f"more than {MOST // 1_000_000} MB in one answer")
        try:
            self.writer.write(struct.pack("<II", len(body), len(data)) + body + data)
            self.writer.flush()
        except (OSError, ValueError) as error:
            raise Gone(str(error)) from None

    def receive(self) -> tuple[dict, list]:
        try:
            sizes = struct.unpack("<II", self._read(8))
            if sum(sizes) > MOST:
                raise Gone("a message is too large")
            message = json.loads(self._read(sizes[0]))
            data = self._read(sizes[1])
            found = load(data) if data else {}
            tensors = [found[str(i)] for i in range(len(found))]
        except Gone:
            raise
        except Exception as error:  # whatever junk makes of json and safetensors
            raise Gone(f"no message: {type(error).__name__}") from None
        if not isinstance(message, dict):
            raise Gone("no message")
        return message, tensors

    def _read(self, count: int) -> bytes:
        try:
            data = self.reader.read(count)
        except (OSError, ValueError) as error:
            raise Gone(str(error)) from None
        if data is None or len(data) < count:
            raise Gone("the other end has ended")
        return data

    # calls ----------------------------------------------------------------------------------------

    def call(self, target: dict, args: tuple, kwargs: dict, modules: list = (), names: dict | None = None):
        """Have the other end call `target` and return what it gives; raises the error that was raised there."""
        if self.depth == 0:
            self.live = []
        for module in modules:
            self._know(module)
        packed = Pack(self)
        values = packed.put([list(args), kwargs, list((names or {}).items())])
        states, inputs = packed.states(), packed.inputs + packed.parameters()
        self.last += 1
        number, grad = self.last, torch.is_grad_enabled()
        self.send({"do": "call", "id": number, "f": target, "values": values, "modules": states, "grad": grad},
                  packed.tensors)
        reply, tensors = self._await(number)
        opened = Unpack(self, tensors)
        opened.take(reply.get("modules"))
        if "error" in reply:
            name, text = (str(part)[:2000] for part in reply["error"])
            known = getattr(builtins, name, None)
            if name in ("AssertionError", "NotImplementedError", "TypeError", "ValueError", "MemoryError"):
                raise known(text)
            raise type(re.sub(r"\W", "", name)[:60] or "Error", (Exception,), {})(text)
        value = opened.get(reply.get("value"))
        if opened.differentiable and grad and inputs:
            found = opened.differentiable
            alive = Link.apply(self, number, [one.detach() for one in found], *inputs)
            value = replaced(value, dict(zip(map(id, found), alive)))
        if reply.get("after") is not None:
            adjust([list(args), kwargs], opened.get(reply["after"]))
        for name in reply.get("drew") or ():
            {"random": random.random, "torch": lambda: torch.rand(1), "numpy": numpy.random.rand}.get(name, int)()
        return value

    def ask(self, message: dict, values):
        packed = Pack(self)
        self.last += 1
        number = self.last
        self.send({**message, "id": number, "values": packed.put(values)}, packed.tensors)
        reply, tensors = self._await(number)
        if "error" in reply:
            raise RuntimeError(str(reply["error"][-1])[:2000])
        return Unpack(self, tensors).get(reply.get("value"))

    def _await(self, number: int) -> tuple[dict, list]:
        """The reply to a message; calls of the other end are answered meanwhile."""
        self.depth += 1
        if self.depth > 200:
            raise Gone("calls within calls")
        try:
            while True:
                message, tensors = self.receive()
                if message.get("re") == number:
                    return message, tensors
                self.serve(message, tensors)
        finally:
            self.depth -= 1

    def serve(self, message: dict, tensors: list) -> None:
        """Do what the other end asks for, and reply."""
        what = message.get("do")
        if what == "call":
            self._serve_call(message, tensors)
        elif what == "gradients":
            self._serve_gradients(message, tensors)
        elif self.other is not None:
            self.other(message)
        else:
            raise Gone("an unknown message")

    def _serve_call(self, message: dict, tensors: list) -> None:
        number = message.get("id")
        if self.depth == 0:
            self.live = []
        self.depth += 1
        try:
            opened = Unpack(self, tensors)
            opened.take(message.get("modules"))
            target = message["f"]
            args, kwargs, names = opened.get(message["values"])
            if "module" in target:
                function = self.mine[target["module"]]
            elif "mine" in target:
                function = self.functions[target["mine"]]
            elif self.names is not None and "name" in target:
                function = None
            else:
                raise Gone("an unknown function")
            inputs = opened.leaves + Pack(self).parameters()
            before = Pack(self).digest([args, kwargs])
            states = drawn()
            with self.around(dict(names)), torch.set_grad_enabled(bool(message.get("grad"))):
                if function is None:
                    if target["name"] not in self.names:
                        raise NameError(f"name '{target['name']}' is not defined")
                    function = self.names[target["name"]]
                value = function(*args, **kwargs)
                packed = Pack(self)
                body = {"value": packed.put(value, outputs=True)}
            if Pack(self).digest([args, kwargs]) != before:
                body["after"] = packed.put([args, kwargs])
            body["drew"] = [name for name, state in drawn().items() if state != states[name]]
            body["modules"] = packed.states()
            self.kept[number] = (inputs, packed.outputs)
            self.send({"re": number, **body}, packed.tensors)
        except Gone:
            raise
        except BaseException as error:  # SystemExit and KeyboardInterrupt too: a call has a reply
            packed = Pack(self)
            self.send({"re": number, "error": [type(error).__name__, str(error)[:2000]], "modules": packed.states()},
                      packed.tensors)
        finally:
            self.depth -= 1

    def _serve_gradients(self, message: dict, tensors: list) -> None:
        number = message.get("id")
        try:
            upstream = Unpack(self, tensors).get(message["values"])
            inputs, outputs = self.kept[message["call"]]
            pairs = [(one, slope) for one, slope in zip(outputs, upstream)
                     if slope is not None and one.requires_grad]
            wanted = [i for i, one in enumerate(inputs) if one.requires_grad]
            found = dict(zip(wanted, torch.autograd.grad(
                [one for one, _ in pairs], [inputs[i] for i in wanted], [slope for _, slope in pairs],
                retain_graph=True, allow_unused=True))) if pairs and wanted else {}
            packed = Pack(self)
            value = packed.put([found.get(i) for i in range(len(inputs))])
            self.send({"re": number, "value": value}, packed.tensors)
        except Gone:
            raise
        except Exception as error:
            self.send({"re": number, "error": [type(error).__name__, str(error)[:2000]]})

    def _know(self, module: nn.Module) -> None:
        if not any(one is module for one in self.live):
            self.live.append(module)


def drawn() -> dict:
    """The states of the generators that a program shares."""
    return {"random": random.getstate(), "torch": torch.get_rng_state().numpy().tobytes(),
            "numpy": str(numpy.random.get_state()[1:3])}


class Pack:
    """Values on their way out: JSON, with the tensors in a list."""

    def __init__(self, wire: Wire):
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

    def __init__(self, wire: Wire, tensors: list):
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


@contextmanager
def unchanged(names: dict, own: dict):
    """Put other values under some names of `own` for a while."""
    missing = object()
    before = {name: own.get(name, missing) for name in names}
    own.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is missing:
                own.pop(name, None)
            else:
                own[name] = value
