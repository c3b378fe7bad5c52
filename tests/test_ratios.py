"""Ratios learned on held-out images: two optimisers written out, and what happens where there is nothing to hold out."""
import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from clip_adapter_lite import CLIPAdapter
from clip_adapter_lite.methods.base import best_near
from clip_adapter_lite.methods.ratios import PRIOR, RATIO_RATE, WORTH, decoupled, held_out_of, penalty

STEPS, RATE = 9, 1e-2


def doubled(bank, shots=3, **fields):
    return replace(bank.episode(shots).to(torch.float64), **fields)


def without_validation(episode):
    return replace(episode, val=episode.val.take(torch.tensor([], dtype=torch.long)))


def test_the_fit_is_two_optimisers_that_take_turns_on_two_sets_of_images(toy_bank):
    """The adapter on the support images at today's α, α's logit on the validation images at today's adapter."""
    episode = doubled(toy_bank())
    method = CLIPAdapter(alpha="auto", steps=STEPS, rate=RATE, device="cpu")
    fitted = method.fit(episode)

    start = CLIPAdapter(alpha=0.5, steps=0, device="cpu").fit(episode).head.visual  # every ratio starts from the same
    w1, w2 = (weight.detach().clone().requires_grad_() for weight in (start.down.weight, start.up.weight))
    z = torch.tensor(math.log(PRIOR / (1 - PRIOR)), dtype=torch.float64, requires_grad=True)
    adapter = torch.optim.AdamW([w1, w2], lr=RATE, weight_decay=1e-2)
    ratio = torch.optim.AdamW([z], lr=RATIO_RATE, weight_decay=0)

    def loss(split, alpha, a, b):
        blend = alpha * (torch.relu(split.features @ a.T) @ b.T) + (1 - alpha) * split.features
        logits = episode.logit_scale * normalize(blend, dim=-1) @ normalize(episode.text_features, dim=-1).T
        return cross_entropy(logits, split.labels)

    for step in range(STEPS):
        factor = 0.5 * (1 + math.cos(math.pi * step / STEPS))
        alpha = torch.sigmoid(z)
        adapter.param_groups[0]["lr"] = RATE * factor / max(alpha.item(), 0.1)
        ratio.param_groups[0]["lr"] = RATIO_RATE * factor
        adapter.zero_grad(), ratio.zero_grad()
        loss(episode.support, alpha.detach(), w1, w2).backward()
        prior = WORTH / len(episode.val) * (z - math.log(PRIOR / (1 - PRIOR))) ** 2
        (loss(episode.val, alpha, w1.detach(), w2.detach()) + prior).backward()
        adapter.step(), ratio.step()

    assert fitted.alpha == pytest.approx(torch.sigmoid(z).item(), abs=1e-10) != PRIOR
    torch.testing.assert_close(fitted.head.visual.down.weight, w1.detach(), rtol=0, atol=1e-10)
    torch.testing.assert_close(fitted.head.visual.up.weight, w2.detach(), rtol=0, atol=1e-10)


def test_adapters_do_not_see_held_out_images_nor_ratios_the_support(toy_bank):
    episode = doubled(toy_bank())
    method = CLIPAdapter(branch="both", alpha="auto", beta="auto", device="cpu")
    head = method.new_head(episode, "auto", "auto")

    def gradients(support, held_out):
        head.zero_grad()
        decoupled(head, support, held_out, 0).backward()
        return {name: p.grad.clone() for name, p in head.named_parameters()}

    mine = gradients(episode.support, episode.val)
    other_val = gradients(episode.support, episode.test)
    other_support = gradients(episode.test, episode.val)
    for name, gradient in mine.items():
        assert torch.equal(gradient, other_val[name]) != name.startswith("ratios.")
        assert torch.equal(gradient, other_support[name]) == name.startswith("ratios.")


def test_without_validation_a_shot_of_each_class_is_held_out_and_all_are_fitted_again(toy_bank):
    episode = without_validation(toy_bank().episode(3))
    rest, held_out, source = held_out_of(episode)
    assert held_out.labels.tolist() == [0, 1, 2, 3, 4] and len(rest) == 10 and source.startswith("a shot of each class")
    fitted = CLIPAdapter(alpha="auto", steps=5, device="cpu").fit(episode)
    assert fitted.details == {"ratio_from": source, "held_out": 5} and 0 < fitted.alpha < 1
    again = CLIPAdapter(alpha=fitted.alpha, steps=5, device="cpu").fit(episode)
    assert torch.equal(fitted.logits(episode.test.view()), again.logits(episode.test.view()))
    ratio = CLIPAdapter(alpha="auto", steps=5, device="cpu").fit(replace(episode, support=rest, val=held_out)).alpha
    assert fitted.alpha == ratio


def test_from_one_shot_and_no_validation_the_ratio_is_the_priors_and_that_is_said(toy_bank):
    episode = without_validation(toy_bank().episode(1))
    fitted = CLIPAdapter(alpha="auto", steps=5, device="cpu").fit(episode)
    same = CLIPAdapter(alpha=PRIOR, steps=5, device="cpu").fit(episode)
    torch.testing.assert_close(fitted.logits(episode.test.view()), same.logits(episode.test.view()))
    assert fitted.details == {"ratio_from": "the prior", "held_out": 0} and fitted.alpha == pytest.approx(PRIOR)


def test_classes_of_one_image_hold_nothing_out(toy_bank):
    episode = without_validation(toy_bank(train=[1, 3, 2, 1, 1]).episode(3, allow_fewer=True))
    rest, held_out, _ = held_out_of(episode)
    assert held_out.labels.tolist() == [1, 2] and sorted(set(rest.labels.tolist())) == [0, 1, 2, 3, 4]


def test_a_validation_part_of_one_class_is_enough(toy_bank):
    episode = toy_bank().episode(2)
    one = replace(episode, val=episode.val.take((episode.val.labels == 3).nonzero().squeeze(1)))
    fitted = CLIPAdapter(alpha="auto", steps=5, device="cpu").fit(one)
    assert fitted.details["held_out"] == 2 and 0 < fitted.alpha < 1


def test_the_more_images_the_less_the_prior_weighs(toy_bank):
    head = CLIPAdapter(branch="both", device="cpu").new_head(doubled(toy_bank()), "auto", "auto")
    with torch.no_grad():
        head.ratios.shared += torch.tensor([1.0, -2.0])
        assert [penalty(head, torch.ones(n, head.width)).item() for n in (4, 400)] == pytest.approx([5, 0.05])
        one = CLIPAdapter(device="cpu").new_head(doubled(toy_bank()), "auto", None)  # no β, so none to be judged
        one.ratios.shared += torch.tensor([1.0, -2.0])
        assert penalty(one, torch.ones(4, one.width)).item() == pytest.approx(1)


def test_of_a_network_every_images_ratio_is_held_to_the_prior(toy_bank):
    episode = doubled(toy_bank())
    head = CLIPAdapter(branch="both", device="cpu").new_head(episode, "learned", "learned")
    assert penalty(head, episode.val.view()).item() == pytest.approx(0, abs=1e-12)
    with torch.no_grad():
        head.ratios.last.weight.normal_(generator=torch.Generator().manual_seed(0))
        alphas, betas = head.alphas(episode.val.view()), head.betas()
        logits = [(ratio / (1 - ratio)).log() for ratio in (alphas, betas)]
        squares = [(z - math.log(PRIOR / (1 - PRIOR))).square().mean() for z in logits]
        assert penalty(head, episode.val.view()).item() == pytest.approx(WORTH / len(episode.val) * sum(squares).item())


def test_a_network_whose_rest_is_still_learns_what_one_shared_ratio_does(toy_bank):
    """Q's last bias is a SharedRatio: the rest of Q is all that it has more."""
    episode = doubled(toy_bank())
    method = CLIPAdapter(alpha="learned", steps=STEPS, rate=RATE, device="cpu")
    head = method.new_head(episode, "learned", None)
    with torch.no_grad():  # it was made in float32
        head.ratios.shared.fill_(math.log(PRIOR / (1 - PRIOR)))
    for still in (head.ratios.first.weight, head.ratios.first.bias, head.ratios.last.weight):
        still.requires_grad_(False)
    method.train_head(head, episode, held_out=episode.val)
    shared = CLIPAdapter(steps=STEPS, rate=RATE, device="cpu").fit(episode)
    alphas = head.alphas(episode.test.view()).squeeze(1)
    assert alphas.tolist() == pytest.approx([shared.alpha] * len(episode.test), abs=1e-12)
    torch.testing.assert_close(head(episode.test.view()), shared.logits(episode.test.view()), rtol=0, atol=1e-9)


def test_a_fit_of_no_steps_keeps_the_prior_and_a_fixed_partner_stays_fixed(toy_bank):
    episode = toy_bank().episode(2)
    still = CLIPAdapter(branch="both", alpha="auto", beta=0.25, steps=0, device="cpu").fit(episode)
    assert (still.alpha, still.beta) == (pytest.approx(PRIOR, abs=1e-6), 0.25)
    assert still.head.ratios is None and still.head.options["alpha"] == still.alpha


@pytest.mark.parametrize("pair", [("auto", "val"), ("learned", "auto"), ("val", "learned")])
def test_ratios_learned_in_different_ways_do_not_mix(pair, expect_refused):
    with expect_refused("come about in one way", ValueError):
        CLIPAdapter(branch="both", alpha=pair[0], beta=pair[1])


def test_an_adapter_that_learns_wrong_labels_gets_a_small_ratio(toy_bank):
    """Text features that are right already: held-out images ask for little of an adapter that is not."""
    episode, method = toy_bank(noise=1.0, val=8).episode(4), CLIPAdapter(alpha="auto", rate=1e-2, device="cpu")
    wrong = replace(episode, support=type(episode.support)(episode.support.features, episode.support.labels.roll(4)))
    fitted = method.fit(wrong)
    assert fitted.alpha < 0.1 < 0.3 < method.fit(episode).alpha
    assert fitted.accuracy(episode.test) > replace(method, alpha=PRIOR).fit(wrong).accuracy(episode.test)


def test_a_network_learned_without_validation_is_kept_for_the_fit_on_all_shots(toy_bank):
    """Q from the held-out shots, the adapter from all of them at that Q."""
    episode = without_validation(doubled(toy_bank(noise=1.0)))
    rest, held_out, source = held_out_of(episode)
    method = CLIPAdapter(alpha="learned", steps=STEPS, rate=RATE, device="cpu")
    fitted = method.fit(episode)
    first = method.fit(replace(episode, support=rest, val=held_out))
    assert fitted.details == {"ratio_from": source, "held_out": len(held_out)}
    for name, tensor in first.head.ratios.state_dict().items():
        assert torch.equal(tensor, fitted.head.ratios.state_dict()[name])
    assert not torch.equal(first.head.visual.up.weight, fitted.head.visual.up.weight)


def test_from_one_shot_and_no_validation_a_network_stays_at_the_prior(toy_bank):
    episode = without_validation(doubled(toy_bank(), shots=1))
    fitted = CLIPAdapter(alpha="learned", steps=5, device="cpu").fit(episode)
    assert fitted.alphas(episode.test.view()).tolist() == pytest.approx([PRIOR] * len(episode.test))


SCORES = {(0.0, None): (0.70, -1.0), (0.2, None): (0.80, -0.9), (0.5, None): (0.85, -0.7), (0.6, None): (0.86, -0.8),
          (1.0, None): (0.90, -0.5)}


@pytest.mark.parametrize("images, chosen, reach", [(10_000, 1.0, 1), (50, 0.6, 2), (8, 0.5, 4), (2, 0.5, 5)])
def test_a_search_goes_to_the_prior_as_far_as_its_images_cannot_tell(images, chosen, reach):
    """One standard error of 0.9 is 0.003 for 10 000 images, 0.042 for 50, 0.106 for 8, 0.21 for 2."""
    assert best_near(SCORES, images, 0.4) == ((chosen, None), reach)


def test_of_equally_near_ratios_the_better_score_wins():
    scores = {(0.3, None): (0.8, -0.5), (0.5, None): (0.8, -0.4)}
    assert best_near(scores, 10, 0.4)[0] == (0.5, None)
    assert best_near({(0.2, 0.6): (1.0, -0.4), (0.4, 0.4): (1.0, -0.5), (1.0, 0.4): (1.0, -0.1)}, 10, 0.4) == ((0.4, 0.4), 3)
