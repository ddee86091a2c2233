import numpy as np
import torch
from skimage.color import rgb2lab

from stedm.colour.lab import lab_from_rgb, rgb_from_lab


def test_agrees_with_scikit_image_and_comes_back():
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double()
    images[0, :, 0, :4] = torch.tensor([0.0, 0.001, 0.03, 1.0])  # below the knees, and white
    lab = lab_from_rgb(images)
    expected = rgb2lab(images.numpy(), channel_axis=1)
    assert np.allclose(lab.numpy(), expected, atol=1e-6)
    assert torch.allclose(rgb_from_lab(lab), images, atol=1e-6)


def test_impossible_colours_are_cut_off():
    lab = torch.tensor([100.0, 120.0, -150.0]).view(1, 3, 1, 1)
    image = rgb_from_lab(lab)
    assert image.min() >= 0
    assert image.max() <= 1
