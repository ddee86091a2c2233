"""Datasets from what people have, and back: folders of images and masks, nnU-Net, COCO, tiles of QuPath."""
