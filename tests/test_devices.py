"""Devices and precision: one rule, kept on a CPU that is made to refuse what other devices refuse."""
import numpy
import pytest
import torch
from conftest import tiny_backbone

import clip_adapter_lite as cal
from clip_adapter_lite.devices import as_array, in_parts, method_dtype, tower_precision


@pytest.mark.parametrize("device, wanted", [("cuda", "fp16"), ("cuda:1", "fp16"), ("mps", "fp32"), ("cpu", "fp32")])
def test_towers_are_halved_on_cuda_alone(device, wanted):
    assert tower_precision(torch.device(device)) == wanted


@pytest.mark.parametrize("given, on_cpu, on_mps", [("float16", "float32", "float32"), ("bfloat16", "float32", "float32"),
                                                   ("float32", "float32", "float32"), ("float64", "float64", "float32")])
def test_methods_compute_in_single_at_least_and_in_double_where_there_is_one(given, on_cpu, on_mps):
    found = [method_dtype(getattr(torch, given), torch.device(device)) for device in ("cpu", "cuda", "mps")]
    assert found == [getattr(torch, name) for name in (on_cpu, on_cpu, on_mps)]


def test_numbers_of_every_origin_become_arrays():
    values = [[1.5, -2.0], [0.25, 4.0]]
    for given in (values, numpy.array(values), torch.tensor(values, requires_grad=True), torch.tensor(values).bfloat16()):
        found = as_array(given)
        assert isinstance(found, numpy.ndarray) and found.tolist() == values


@pytest.fixture
def without_float64(monkeypatch):
    """As on Apple's GPU: a tensor becomes float64 only once it was brought to the CPU."""
    double, cpu, to = torch.Tensor.double, torch.Tensor.cpu, torch.Tensor.to

    def brought(tensor, *args, **options):
        found = cpu(tensor, *args, **options).detach().clone()
        found.is_home = True
        return found

    def doubled(tensor, *args, **options):
        if not getattr(tensor, "is_home", False):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")
        return double(tensor, *args, **options)

    monkeypatch.setattr(torch.Tensor, "cpu", brought)
    monkeypatch.setattr(torch.Tensor, "double", doubled)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *args, **options: doubled(tensor) if torch.float64 in args
                        else to(tensor, *args, **options))
    with pytest.raises(TypeError):
        torch.ones(2).double()


@pytest.mark.parametrize("method", [cal.ZeroShot(), cal.LinearProbe(bisections=1), cal.CLIPAdapter(steps=2),
                                    cal.CLIPAdapter(branch="both", alpha="learned", beta="learned", steps=2),
                                    cal.TipAdapter(finetune=True, steps=2)], ids=lambda method: method.label)
def test_methods_are_fitted_and_judged_without_float64(method, toy_bank, without_float64):
    episode = toy_bank().episode(2)
    fitted = method.fit(episode)
    right = sum(row.index(max(row)) == label for row, label in
                zip(fitted.logits(episode.test.view()).tolist(), episode.test.labels.tolist()))
    assert fitted.accuracy(episode.test) == right / len(episode.test)


class Apples(torch.Tensor):
    """A tensor on such a device: what is computed with it is there too, until `cpu()`."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.Tensor.double or any(arg is torch.float64 for arg in (*args, *(kwargs or {}).values())):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")
        found = super().__torch_function__(function, types, args, kwargs or {})
        return found.as_subclass(torch.Tensor) if function is torch.Tensor.cpu else found


def test_what_logits_are_worth_is_measured_without_float64():
    labels = torch.tensor([0, 1, 1, 0])
    chances = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])
    there, meant = chances.as_subclass(Apples), labels.as_subclass(Apples)
    with pytest.raises(TypeError):
        there.double()
    assert cal.evaluation.accuracy(there, meant) == 0.75
    assert cal.per_class_accuracy(there, meant).tolist() == [1, 0.5]
    # bins of a fifteenth: each of the four confidences has its own
    assert cal.calibration_error(there, meant) == pytest.approx((0.1 + 0.2 + 0.6 + 0.3) / 4)


def test_thresholds_and_sets_are_found_without_float64():
    there = torch.tensor([[2.0, -1.0], [0.5, 0.25]]).as_subclass(Apples)
    found = cal.Calibration(threshold=1.0, limits=torch.tensor([0.5, 0.4], dtype=torch.float64))
    assert found.rejected(there).tolist() == [False, True]
    assert found.sets(there).tolist() == [[True, False], [True, True]]  # 1 / (1 + e⁻³) is 0.95; 1 / (1 + e^-0.25) is 0.56


def test_the_backbone_of_an_episode_is_asked_for_on_the_device_of_the_method(toy_bank, monkeypatch):
    asked = []
    monkeypatch.setattr(cal.backbones, "shared_backbone", lambda name, tag, device: asked.append(str(device)))
    episode = toy_bank().episode(1)
    cal.CLIPAdapter(device="meta").prepared(episode).backbone  # noqa: B018  (a property that loads)
    cal.CLIPAdapter(device="cpu").prepared(episode).backbone  # noqa: B018
    assert asked == ["meta", "cpu"]


@pytest.mark.parametrize("said, wanted", [
    (RuntimeError("Found no NVIDIA driver on your system. Please check that you have one."), "Found no NVIDIA driver"),
    (RuntimeError("The NVIDIA driver on your system is too old (found version 11040)."), "too old (found version 11040)"),
    (RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable\nCUDA kernel errors might"), "is/are busy"),
    (AssertionError("Torch not compiled with CUDA enabled"), "not compiled with CUDA"),
    (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB."), "cuda:7 has no free memory")], ids=str)
def test_a_card_that_cannot_be_used_is_one_sentence_with_the_way_out(said, wanted, monkeypatch, expect_refused):
    def refuse(*size, device):
        raise said
    monkeypatch.setattr(torch, "zeros", refuse)
    for part in (wanted, "cuda:7", "CUDA_VISIBLE_DEVICES= (device='cpu')"):
        with expect_refused(part, RuntimeError):
            cal.devices.best_device("cuda:7")
    assert cal.devices.best_device("cpu").type == "cpu"


def test_parts_are_halved_for_good_and_one_too_many_is_said(expect_refused):
    tried = []

    def work(part, holds=3):
        tried.append(len(part))
        if len(part) > holds:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return part * 2
    rows = torch.arange(10)
    found, most = in_parts(work, rows, 8, "text")
    assert torch.equal(found, rows * 2) and most == 2 and tried == [8, 4, 2, 2, 2, 2, 2]
    with expect_refused("cpu has too little free memory for one text (CUDA out of memory)", RuntimeError):
        in_parts(lambda part: work(part, holds=0), rows, 8, "text")


def test_class_names_are_encoded_in_fewer_at_a_time_where_memory_is_short(monkeypatch):
    backbone, texts = tiny_backbone(), [f"a photo of a {i}" for i in range(9)]
    whole, tried, encode = backbone.encode_text(texts), [], cal.Backbone.encode_tokens

    def small(self, embedded, end, *rest):
        tried.append(len(end))
        if len(end) > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return encode(self, embedded, end, *rest)
    monkeypatch.setattr(cal.Backbone, "encode_tokens", small)
    torch.testing.assert_close(backbone.encode_text(texts), whole, rtol=1e-4, atol=1e-5)
    assert tried == [9, 4, 2, 2, 2, 2, 1]
