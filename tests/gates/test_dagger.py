"""The Dagger module: features of the weights, one network per group, and gates that pass gradients on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fxprune.gates.dagger import BlockDescription, Dagger, Description, straight_through


def test_a_channel_is_described_by_the_size_of_its_weights_beside_the_others() -> None:
    weight = torch.tensor([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]])
    (features,) = Description(3, [(0, torch.arange(3))])(weight).T
    assert features.tolist() == pytest.approx([-np.sqrt(1.5), 0.0, np.sqrt(1.5)], rel=1e-4)


def test_indices_of_one_channel_are_averaged_and_those_of_other_groups_left_out() -> None:
    weight = torch.tensor([1.0, 3.0, 100.0, 8.0])
    described = Description(2, [(0, torch.tensor([0, 0, 2, 1]))])(weight)
    assert torch.equal(described, Description(2, [(0, torch.arange(2))])(torch.tensor([2.0, 8.0])))


def test_a_block_is_described_by_the_size_of_what_is_at_its_end_beside_the_others() -> None:
    ends = [torch.ones(3), 3 * torch.ones(2, 2), torch.full((4,), 2.0), torch.full((1,), 2.0), torch.zeros(2)]
    features = BlockDescription([2, 2, 1])(*ends)
    assert features.shape == (3, 1)
    # The root mean squares are the root of 5, 2 and 0.
    assert features[0] > features[1] > features[2]
    assert torch.equal(features, Description(3, [(0, torch.arange(3))])(torch.tensor([5**0.5, 2.0, 0.0])))


def test_a_description_is_computed_again_only_when_a_weight_has_changed() -> None:
    weight = torch.tensor([1.0, 2.0, 4.0])
    description = Description(3, [(0, torch.arange(3))])
    first = description(weight)
    assert description(weight) is first
    weight[0] = 8.0
    second = description(weight)
    assert second[0] > first[0]
    description.hold(weight)
    weight[0] = 1.0
    assert description(weight) is second


def test_gates_are_binary_and_learn_most_near_the_threshold() -> None:
    logits = torch.tensor([-1.0, -0.1, 0.0, 0.2], requires_grad=True)
    gates = straight_through(logits)
    assert gates.tolist() == [0.0, 0.0, 0.0, 1.0]
    gates.sum().backward()
    assert logits.grad is not None
    assert logits.grad.argsort(descending=True).tolist() == [2, 1, 3, 0]


def test_a_new_module_opens_every_gate_and_set_logits_gives_what_was_asked_for() -> None:
    dagger = Dagger([(2, 1), (1, 3)])
    described = [torch.randn(2, 1), torch.randn(1, 3)]
    assert dagger(described).tolist() == [1.0, 1.0, 1.0, 1.0]
    with torch.no_grad():
        for parameter in dagger.parameters():
            parameter.normal_()
    dagger.set_logits(torch.tensor([0.5, -0.5, -2.0]))
    assert dagger.logits(described).tolist() == [0.5, -0.5, -2.0]
    assert dagger(described).tolist() == [1.0, 0.0, 0.0, 1.0]


def test_the_pull_of_the_flops_joins_the_gradient_of_the_task() -> None:
    gradients = []
    for pull in (None, torch.tensor([0.5, -1.0, 2.0])):
        dagger = Dagger([(2, 1), (1, 3)])
        dagger.pull = pull
        gates = dagger([torch.zeros(2, 1), torch.zeros(1, 3)])
        (gates[:-1] * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
        assert dagger.bias.grad is not None
        gradients.append(dagger.bias.grad)
    torch.testing.assert_close(gradients[1] - gradients[0], torch.tensor([0.5, -1.0, 2.0]))


def test_groups_that_are_computed_together_are_independent() -> None:
    torch.manual_seed(0)
    shapes = [(5, 2), (3, 1), (17, 4), (6, 3)]
    dagger = Dagger(shapes)
    described = [torch.randn(shape) for shape in shapes]

    def by_group(described: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return (dagger.logits(described) - dagger.bias).split([channels for channels, _ in shapes])

    with torch.no_grad():
        for parameter in dagger.parameters():
            parameter.normal_()
        before = by_group(described)
        for number in range(len(shapes)):
            # Channels in another order, of one group alone: so are its numbers.
            turned = [x.flip(0) if k == number else x for k, x in enumerate(described)]
            for k, (old, new) in enumerate(zip(before, by_group(turned), strict=True)):
                torch.testing.assert_close(new, old.flip(0) if k == number else old)
                assert not torch.allclose(old, old.flip(0))
