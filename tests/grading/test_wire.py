"""The wire between the judge and a submission's process, with both ends here; and what feedback pages get."""
import json
import random
import socket
import struct
import threading

import nbformat
import numpy
import pytest
import submitting  # noqa: F401 (puts solutions/ on the path)
import torch
from safetensors.torch import save
from torch import nn

from pages import complete  # isort: skip (from solutions/)
from packing import Gone, Mirror  # isort: skip
from wire import Wire, unchanged  # isort: skip


@pytest.fixture
def ends():
    """(the judge's end, the names at the other end, its raw socket)."""
    ours, theirs = socket.socketpair()
    names = {}
    judge = Wire(ours.makefile("rb"), ours.makefile("wb"))
    learner = Wire(theirs.makefile("rb"), theirs.makefile("wb"), names, lambda more: unchanged(more, names))

    def serve():
        try:
            while True:
                learner.serve(*learner.receive())
        except Gone:
            pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield judge, names, theirs
    for one in (ours, theirs):
        try:
            one.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        one.close()
    thread.join(5)


@pytest.mark.parametrize("value", [
    None, True, 3, -2.5, float("inf"), "α", [1, [2.0]], (1, "a"), {"a": (1, 2), 0.5: [None]}, {(1.0, 2.0): (3, 4)}])
def test_plain_values_come_back_as_they_went(ends, value):
    judge, names, _ = ends
    names["same"] = lambda x: x
    found = judge.call({"name": "same"}, (value,), {})
    assert found == value and type(found) is type(value)


def test_arrays_and_scalars_come_back_as_numbers_and_objects_as_nothing(ends):
    judge, names, _ = ends
    names["give"] = lambda: (torch.arange(6).reshape(2, 3), numpy.float32(0.5), numpy.ones(2), object(), (i for i in (1, 2)))
    whole, number, array, other, generator = judge.call({"name": "give"}, (), {})
    assert whole.tolist() == [[0, 1, 2], [3, 4, 5]] and whole.dtype == torch.int64
    assert number == 0.5 and type(number) is float and array.tolist() == [1, 1]
    assert type(other).__name__ == "object" and type(other) is not object and list(generator) == [1, 2]


def test_changes_in_place_are_seen_and_the_use_of_shared_generators_too(ends):
    judge, names, _ = ends

    def change(tensor, items, known):
        tensor += 1
        items.pop()
        known["b"] = 2
        random.random()

    names["change"] = change
    tensor, items, known, before = torch.zeros(2), [1, 2], {"a": 1}, random.getstate()
    judge.call({"name": "change"}, (tensor, items, known), {})
    assert tensor.tolist() == [1, 1] and items == [1] and known == {"a": 1, "b": 2} and random.getstate() != before


def test_gradients_go_through_a_call_and_through_a_call_back(ends):
    judge, names, _ = ends
    names["twice"] = lambda f, x: f(f(x)) * x
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    slope = torch.tensor([3.0, 0.5], requires_grad=True)  # the judge's own: no part of the call
    found = judge.call({"name": "twice"}, (lambda y: slope.detach() * y, x), {})
    assert found.tolist() == [9.0, 1.0]
    found.sum().backward()
    assert x.grad.tolist() == [18.0, 1.0]  # of slope² x²
    names["cut"] = lambda x: x.detach() * 2
    assert not judge.call({"name": "cut"}, (x,), {}).requires_grad


def test_modules_are_trained_there_and_mirrored_here(ends):
    judge, names, _ = ends

    def train(module, loss):
        torch.optim.SGD(module.parameters(), lr=0.5).zero_grad()
        loss().backward()
        torch.optim.SGD(module.parameters(), lr=0.5).step()
        module.eval()
        return list(module.parameters())

    names["train"], names["Linear"] = train, nn.Linear
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1.0]]))
    found = judge.call({"name": "train"}, (layer, lambda: layer(torch.tensor([[2.0, 4.0]])).sum()), {})
    assert layer.weight.tolist() == [[0.0, -3.0]] and not layer.training and found[0] is layer.weight
    mirror = judge.call({"name": "Linear"}, (2, 1), {"bias": False})
    assert isinstance(mirror, Mirror) and [name for name, _ in mirror.named_parameters()] == ["weight"]
    with torch.no_grad():
        mirror.weight.copy_(torch.tensor([[2.0, 3.0]]))
    mirror(torch.tensor([[5.0, 7.0]])).sum().backward()
    assert mirror.weight.grad.tolist() == [[5.0, 7.0]]


def test_names_are_replaced_for_a_call_and_errors_keep_their_names(ends):
    judge, names, _ = ends
    names |= {"order": lambda x: x, "draw": lambda x: names["order"](x)}
    assert judge.call({"name": "draw"}, (3,), {}, names={"order": lambda x: -x}) == -3
    assert judge.call({"name": "draw"}, (3,), {}) == 3
    names["bad"] = lambda: {}["key"]
    with pytest.raises(Exception, match="key") as caught:
        judge.call({"name": "bad"}, (), {})
    assert type(caught.value).__name__ == "KeyError"
    with pytest.raises(Exception, match="name 'none' is not defined"):
        judge.call({"name": "none"}, (), {})


@pytest.mark.parametrize("body, data", [
    (b"[]", b""), (b"{", b""), (b'{"re": 1, "value": [1]}', b""), (b'{"re": 1, "value": {"t": "x"}}', b""),
    (b'{"re": 1, "value": {"t": "tensor", "i": 5, "g": false}}', b""), (b'{"re": 1, "value": null}', b"junk"),
    (b'{"re": 1, "value": {"t": "function", "yours": {"mine": 7}}}', b""), (b'{"do": "call", "id": 1}', b""),
    (b'{"re": 1, "modules": [{"place": {"mine": 0}, "state": {"params": [["a b", 0, true]], "buffers": [], '
     b'"training": []}}], "value": null}', save({"0": torch.zeros(1)})),
    (json.dumps({"re": 1, "value": 0}).encode()[:-1] + b', "x": ' + b"[" * 5000 + b"]" * 5000 + b"}", b"")])
def test_what_is_no_message_is_no_answer(body, data):
    ours, theirs = socket.socketpair()
    judge = Wire(ours.makefile("rb"), ours.makefile("wb"))
    theirs.sendall(struct.pack("<II", len(body), len(data)) + body + data)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(Gone):
        judge.call({"name": "f"}, (), {})
    ours.close(), theirs.close()


def test_a_message_that_says_it_is_huge_is_not_read():
    ours, theirs = socket.socketpair()
    judge = Wire(ours.makefile("rb"), ours.makefile("wb"))
    theirs.sendall(struct.pack("<II", 2 ** 31, 2 ** 31))
    with pytest.raises(Gone, match="too large"):
        judge.call({"name": "f"}, (), {})
    ours.close(), theirs.close()


def test_a_feedback_page_names_the_tasks_and_needs_no_network_for_its_formulas():
    source = nbformat.v4.new_notebook(cells=[
        nbformat.v4.new_markdown_cell("### Exercise 1 · A < B"),
        nbformat.v4.new_code_cell("", metadata={"nbgrader": {"grade_id": "blend-hidden"}})])
    page = ('<!-- Loading mathjax macro --><script src="https://cdn.example"></script>'
            '<!-- End of mathjax configuration --><li><a href="#blend-hidden">Test cell</a></li>'
            '<div class="text_cell_render">costs $x_1$ and $$\\frac{a}{b}$$</div><pre>$x$</pre>')
    found = complete(page, source)
    assert "https://" not in found.replace("http://www.w3.org", "") and "Exercise 1 · A &lt; B, hidden test</a>" in found
    assert found.count("<math") == 2 and "<mfrac>" in found and "<pre>$x$</pre>" in found
