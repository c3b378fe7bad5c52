"""The training loop against arithmetic done by hand."""
import math
from contextlib import nullcontext
from time import sleep

import pytest
import torch

from clip_adapter_lite import training
from clip_adapter_lite.training import cosine, train

RATE, DECAY = 0.1, 0.01


def parameter(*values):
    return torch.nn.Parameter(torch.tensor(values, dtype=torch.float64))


def test_cosine_goes_from_one_to_zero_through_a_half():
    assert cosine(0) == 1 and cosine(1) == 0
    assert cosine(0.5) == pytest.approx(0.5) and cosine(1 / 3) == pytest.approx(0.75)


def test_one_adamw_step_is_decay_and_a_step_of_the_rate_against_the_gradient():
    p = parameter(2.0, -3.0)
    train([p], lambda step: (p * torch.tensor([0.5, -4.0])).sum(), steps=1, rate=RATE, weight_decay=DECAY)
    # after bias correction the first moments are g and g², so the step is rate · g / (|g| + 1e-8)
    expected = [2 * (1 - RATE * DECAY) - RATE * 0.5 / (0.5 + 1e-8), -3 * (1 - RATE * DECAY) + RATE * 4 / (4 + 1e-8)]
    assert p.tolist() == pytest.approx(expected, abs=1e-15)


def test_three_adamw_steps_follow_the_half_cosine():
    p, m, v, x = parameter(2.0), 0.0, 0.0, 2.0
    train([p], lambda step: (p ** 4).sum(), steps=3, rate=RATE, weight_decay=DECAY)
    for step in range(3):
        rate, g = RATE * (1 + math.cos(math.pi * step / 3)) / 2, 4 * x ** 3
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        x -= rate * DECAY * x
        x -= rate * (m / (1 - 0.9 ** (step + 1))) / (math.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8)
    assert p.item() == pytest.approx(x, abs=1e-14)


def test_sgd_has_momentum_and_adds_the_decay_to_the_gradient():
    p, velocity, x = parameter(2.0), 0.0, 2.0
    train([p], lambda step: (p ** 2).sum(), steps=4, rate=RATE, weight_decay=DECAY, optimizer="sgd")
    for step in range(4):
        gradient = 2 * x + DECAY * x
        velocity = gradient if step == 0 else 0.9 * velocity + gradient
        x -= RATE * (1 + math.cos(math.pi * step / 4)) / 2 * velocity
    assert p.item() == pytest.approx(x, abs=1e-14)


def test_a_group_may_have_a_peak_rate_of_its_own():
    p, q = (torch.zeros(1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    train([{"params": [p]}, {"params": [q], "lr": 3 * RATE}], lambda step: (p + q).sum(), steps=2, rate=RATE)
    # a constant gradient moves by the rate of each step (to Adam's 1e-8): a whole one, then half a one of the cosine
    assert p.item() == pytest.approx(-1.5 * RATE, rel=1e-6)
    assert q.item() == pytest.approx(-4.5 * RATE, rel=1e-6)


def test_a_schedule_is_a_factor_on_the_rate_of_each_step():
    factors, p, path = [0.5, 2.0, 0.0, 1.0], parameter(0.0), []
    train([p], lambda step: p.sum(), steps=4, rate=RATE, schedule=factors.__getitem__,
          after_step=lambda step: path.append(p.item()))
    moved = [before - after for before, after in zip([0.0, *path], path)]
    assert moved == pytest.approx([RATE * factor for factor in factors], abs=1e-8)  # the gradient is always 1


def test_loss_and_after_step_are_called_once_a_step_in_turn():
    calls, p = [], parameter(1.0)

    def loss(step):
        calls.append(("loss", step, p.item()))
        return p.sum()

    train([p], loss, steps=3, rate=RATE, after_step=lambda step: calls.append(("after", step, p.item())))
    assert [call[:2] for call in calls] == [(what, step) for step in range(3) for what in ("loss", "after")]
    for (_, _, before), (_, _, after) in zip(calls[::2], calls[1::2]):
        assert after < before  # after_step sees what the step has changed


def test_gradients_do_not_add_up_over_steps():
    p, seen = parameter(5.0), []
    train([p], lambda step: 3 * p.sum(), steps=4, rate=RATE, after_step=lambda step: seen.append(p.grad.item()))
    assert seen == [3, 3, 3, 3]


def test_parameters_may_be_a_generator_and_no_steps_change_nothing():
    p = parameter(1.5)
    train((q for q in [p]), lambda step: pytest.fail("no step was asked for"), steps=0, rate=RATE)
    assert p.item() == 1.5
    train((q for q in [p]), lambda step: p.sum(), steps=1, rate=RATE)
    assert p.item() < 1.5


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_run_that_diverges_is_refused_with_its_rate(optimizer):
    p = parameter(10.0)
    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf) after 9 steps; lower .*rate \(it is 1e\+200\)"):
        train([p], lambda step: (p ** 4).sum(), steps=9, rate=1e200, optimizer=optimizer)


# ── what CUDA does, on a CPU ──────────────────────────────────────────────────────────────────────────────────────


def test_rates_in_tensors_are_the_rates():
    """Those of a schedule, of peaks of their own and of a factor that changes with the training."""
    def run(set_up):
        p, q, s = (torch.nn.Parameter(torch.tensor([2.0])) for _ in range(3))
        factor = lambda: 1 / s.detach().squeeze() if set_up is training._rates_on_device else 1 / s.item()
        groups = [{"params": [p]}, {"params": [q], "lr": 3 * RATE}, {"params": [s], "factor": factor}]
        stepper, told = torch.optim.AdamW(groups, lr=RATE, fused=True), []
        set_rates = set_up(stepper.param_groups, lambda step: cosine(step / 5), 5)
        for step in range(5):
            set_rates(step)
            told.append([float(group["lr"]) for group in stepper.param_groups])
            stepper.zero_grad()
            (p ** 2 + q ** 2 + s ** 2).sum().backward()
            stepper.step()
        return told, [x.item() for x in (p, q, s)]

    (usual, end), (tensors, their_end) = run(training._rates), run(training._rates_on_device)
    for one, other in zip(usual, tensors):
        assert one == pytest.approx(other, rel=1e-6)
    assert end == pytest.approx(their_end, rel=1e-6)
    assert usual[0] == pytest.approx([RATE, 3 * RATE, RATE / 2]) and usual[1][2] > RATE * cosine(1 / 5) / 2


def test_rates_in_tensors_are_single_precision_whatever_the_caller_computes_in():
    before, p = torch.get_default_dtype(), parameter(1.0)
    torch.set_default_dtype(torch.float64)
    try:
        groups = [{"params": [p], "lr": RATE}]
        training._rates_on_device(groups, lambda step: 1.0, 2)(0)
    finally:
        torch.set_default_dtype(before)
    assert groups[0]["lr"].dtype == torch.float32 and groups[0]["lr"].item() == pytest.approx(RATE)


@pytest.mark.parametrize("started", [False, True])
def test_cuda_is_not_started_for_the_randomness_of_a_fit_on_the_cpu(started, monkeypatch):
    """A busy card would refuse it."""
    told = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: started)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: told.append(device) or device)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: told.append((state, device)))
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    with training.seeded(1):
        inside = torch.rand(1)
    assert torch.equal(torch.rand(1), expected) and inside != expected
    assert told == ([0, 1, 2, (0, 0), (1, 1), (2, 2)] if started else [])


@pytest.fixture
def graphs(monkeypatch):
    """Stands in for CUDA's: while one captures, nothing is to be computed, and a replay does what was captured."""
    made = []

    class Graph:
        work = None

        def __init__(self):
            made.append(self)
            self.replays = 0

        def replay(self):
            self.replays += 1
            self.work()

    class Stream:
        def __init__(self, device=None):
            pass

        def wait_stream(self, other):
            pass

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream, **options: nullcontext(made[-1]))
    training._aside.cache_clear()
    yield made
    training._aside.cache_clear()


@pytest.mark.parametrize("steps, replays", [(1, None), (3, None), (4, 1), (9, 6)])
def test_every_step_is_done_once_three_of_them_before_the_capture(steps, replays, graphs):
    done, value = [], torch.zeros(())

    def update(step):
        if graphs and graphs[-1].work is None:  # captured: remembered, not done
            graphs[-1].work = lambda: (done.append("replay"), value.add_(1))
        else:
            done.append(step)
            value.add_(1)
        return value

    last = training._replayed(update, steps, torch.device("cuda"))
    assert done == [*range(min(steps, 3))] + ["replay"] * (replays or 0)
    assert last.item() == steps and [graph.replays for graph in graphs] == ([replays] if replays else [])


def test_what_cannot_be_captured_goes_on_step_by_step(graphs):
    done, refused = [], []

    def update(step):
        if graphs and not refused:
            refused.append(step)
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        done.append(step)
        return torch.tensor(float(step))

    assert training._replayed(update, 7, torch.device("cuda")).item() == 6
    assert done == list(range(7)) and refused == [3] and graphs[0].replays == 0


def test_threads_have_the_stream_one_after_the_other(graphs):
    """Two captures at a time would spoil each other."""
    from threading import Thread, get_ident
    done = []

    def update(step):
        done.append(get_ident())
        sleep(0.001)
        if graphs and step == training.WARM:
            graphs[-1].work = lambda: done.append(get_ident())
        return torch.zeros(())

    threads = [Thread(target=training._replayed, args=(update, 6, torch.device("cuda"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(replayed.replays for replayed in graphs) == [3, 3, 3]
    assert len(done) == 3 * 7 and [len(set(done[i:i + 7])) for i in (0, 7, 14)] == [1, 1, 1]
