"""The layout embedding: any number of classes, unknown as a class of its own, no pixel lost."""

import pytest
import torch

from stedm.layout.embedding import LayoutEmbedding


@pytest.mark.parametrize("n_classes", [2, 4, 19])
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_every_pixel_and_every_class_is_seen(n_classes, factor):
    torch.manual_seed(0)
    embedding = LayoutEmbedding(n_classes, channels=8, factor=factor)
    layout = torch.randint(0, n_classes, (2, 16, 16))
    before = embedding(layout)
    assert before.shape == (2, 8, 16 // factor, 16 // factor)
    for value in ((int(layout[0, 5, 7]) + 1) % n_classes, embedding.unknown):
        changed = layout.clone()
        changed[0, 5, 7] = value
        moved = (embedding(changed) - before).abs().sum(dim=1) > 0
        assert moved.nonzero().tolist() == [[0, 5 // factor, 7 // factor]]
