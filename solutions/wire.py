"""The wire between the judge and the process of a submission: calls, plain data and gradients, on a socket.

Both ends run this file. A message is JSON with tensors beside it as safetensors (`packing.py` says what becomes of
values); nothing is ever unpickled or evaluated. After a call the caller's own arguments and modules are brought to the
state in which the callee left them, so that a change in place is seen on both sides. Gradients go through a call both
ways (`Link`).
"""
import builtins
import json
import random
import re
import struct
from contextlib import contextmanager, nullcontext

import numpy
import torch
from packing import MOST, Gone, Pack, Unpack, adjust, replaced
from safetensors.torch import load, save
from torch import nn


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
