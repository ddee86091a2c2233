"""Aggregation: one style vector from any number of images; padding without effect; order where it is said to."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stedm.errors import StedmError
from stedm.style.aggregation import AGGREGATIONS, fill_slots

DIM, SLOTS, SIDE = 8, 20, 16


def make_block(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return AGGREGATIONS[name](DIM, n_images=SLOTS, image_px=SIDE).eval()


BLOCKS = {name: make_block(name) for name in AGGREGATIONS}
names = pytest.mark.parametrize("name", sorted(AGGREGATIONS))


def what_it_reads(block: torch.nn.Module, n: int, seed: int) -> torch.Tensor:
    """Vectors or images of two samples with n images each."""
    shape = (2, n, 3, SIDE, SIDE) if block.reads_images else (2, n, DIM)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@names
@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, SLOTS), padding=st.integers(1, 5), seed=st.integers(0, 1000))
def test_padding_has_no_effect_wherever_it_lies(name, n, padding, seed):
    block = BLOCKS[name]
    values = what_it_reads(block, n, seed)
    with torch.no_grad():
        expected = block(values, torch.ones(2, n, dtype=torch.bool))
        padded = torch.full((2, n + padding, *values.shape[2:]), 1e6)
        is_there = torch.zeros(2, n + padding, dtype=torch.bool)
        places = torch.randperm(n + padding, generator=torch.Generator().manual_seed(seed))[:n].sort().values
        padded[:, places], is_there[:, places] = values, True
        assert expected.shape == (2, DIM)
        torch.testing.assert_close(block(padded, is_there), expected, rtol=1e-4, atol=1e-5)


@names
@settings(max_examples=20, deadline=None)
@given(n=st.integers(2, SLOTS), seed=st.integers(0, 1000))
def test_order_matters_only_where_it_is_said_to(name, n, seed):
    block = BLOCKS[name]
    values = what_it_reads(block, n, seed)
    valid = torch.ones(2, n, dtype=torch.bool)
    with torch.no_grad():
        difference = (block(values.roll(1, dims=1), valid) - block(values, valid)).abs().max()
    assert (difference < 1e-4) == block.order_free


@names
@pytest.mark.parametrize("n", range(1, SLOTS + 1))
def test_every_number_of_images_up_to_that_of_training(name, n):
    block = BLOCKS[name]
    assert torch.isfinite(block(what_it_reads(block, n, 0), torch.ones(2, n, dtype=torch.bool))).all()


@names
def test_more_images_than_in_training(name):
    block, n = BLOCKS[name], SLOTS + 12
    values, valid = what_it_reads(block, n, 0), torch.ones(2, n, dtype=torch.bool)
    if block.any_number:
        assert torch.isfinite(block(values, valid)).all()
    else:
        with pytest.raises(StedmError, match=f"{n} style images, but this model's aggregation takes {SLOTS}"):
            block(values, valid)


@names
def test_one_sample_does_not_see_another(name):
    block = BLOCKS[name]
    values, valid = what_it_reads(block, 3, 0), torch.ones(2, 3, dtype=torch.bool)
    other = values.clone()
    other[1] += 1.0
    torch.testing.assert_close(block(values, valid)[0], block(other, valid)[0])


@names
def test_every_image_counts_and_every_weight_gets_a_gradient(name):
    block = make_block(name)
    values = what_it_reads(block, 3, 0).requires_grad_()
    generator = torch.Generator().manual_seed(1)
    style = block(values, torch.ones(2, 3, dtype=torch.bool))
    (style * torch.randn(style.shape, generator=generator)).sum().backward() if style.requires_grad else None
    reached = values.grad is not None and bool((values.grad.flatten(2).abs().sum(dim=2) > 0).all())
    assert reached == (name != "none")
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in block.parameters())


def test_a_row_of_padding_alone_stays_finite():
    """Style dropout removes all images of a sample; its result is replaced, but must not spoil the gradients."""
    for block in BLOCKS.values():
        valid = torch.tensor([[True, True], [False, False]])
        style = block(what_it_reads(block, 2, 0), valid)
        assert torch.isfinite(style).all()


def test_values_by_hand():
    vectors = torch.tensor([[[1.0, 4.0], [3.0, 0.0], [9.0, 9.0]]])
    valid = torch.tensor([[True, True, False]])
    assert AGGREGATIONS["mean"](2)(vectors, valid).tolist() == [[2.0, 2.0]]
    assert AGGREGATIONS["max"](2)(vectors, valid).tolist() == [[3.0, 4.0]]
    assert AGGREGATIONS["none"](2)(vectors, valid).tolist() == [[0.0, 0.0]]
    linear = AGGREGATIONS["linear"](2, n_images=3)
    first_slot_minus_last = torch.tensor([[1.0, 0, 0, 0, -1, 0], [0, 1.0, 0, 0, 0, -1]])
    linear.project.weight.data, linear.project.bias.data = first_slot_minus_last, torch.zeros(2)
    # The third slot holds the first image again.
    assert linear(vectors, valid).tolist() == [[0.0, 0.0]]


def test_slots_are_filled_with_the_present_images_in_their_order():
    values = torch.tensor([[10.0, 11, 12, 13], [20, 21, 22, 23]])
    valid = torch.tensor([[False, True, False, True], [True, False, False, False]])
    assert fill_slots(values, valid, 3).tolist() == [[11, 13, 11], [20, 20, 20]]
