"""Aggregation: any number of style pictures, in any order, padding without effect."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stedm.style.aggregation import AGGREGATIONS


@pytest.mark.parametrize("name", sorted(AGGREGATIONS))
@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 20), padding=st.integers(0, 5), seed=st.integers(0, 1000))
def test_order_and_padding_do_not_matter(name, n, padding, seed):
    generator = torch.Generator().manual_seed(seed)
    block = AGGREGATIONS[name]()
    vectors = torch.randn(2, n, 6, generator=generator)
    present = torch.ones(2, n, dtype=torch.bool)
    expected = block(vectors, present)
    order = torch.randperm(n, generator=generator)
    torch.testing.assert_close(block(vectors[:, order], present), expected)
    padded = torch.cat([vectors, 1e6 * torch.ones(2, padding, 6)], dim=1)
    is_there = torch.cat([present, torch.zeros(2, padding, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(block(padded, is_there), expected)


def test_values_by_hand():
    vectors = torch.tensor([[[1.0, 4.0], [3.0, 0.0], [9.0, 9.0]]])
    present = torch.tensor([[True, True, False]])
    assert AGGREGATIONS["mean"]()(vectors, present).tolist() == [[2.0, 2.0]]
    assert AGGREGATIONS["max"]()(vectors, present).tolist() == [[3.0, 4.0]]
