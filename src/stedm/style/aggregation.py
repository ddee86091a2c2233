"""The aggregation block: several style images become one style vector (paper, section 3).

Every block maps what it reads and `valid (b, n)`, False at padding, to style vectors `(b, dim)`; each row has at
least one valid image. Most read the encoder's `vectors (b, n, dim)`; a block with `reads_images` reads the
images themselves, `(b, n, 3, height, width)`, and takes the style encoder's place. A new block is added to
`AGGREGATIONS`; all are constructed alike, from `dim`, `n_images` (of training) and `image_px`.

| block | number of images | order | source |
|---|---|---|---|
| none | any | - | paper: no style, zeros |
| mean, max | any | free | paper |
| linear | up to `n_images` | matters | paper: concatenation and one linear layer |
| set-vit | up to `n_images` | matters | paper: a transformer on patches of all images |
| attention | any | free | ours: pooling by attention (Lee et al. 2019, Set Transformer) |
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from stedm.errors import StedmError


class Aggregation(nn.Module):
    """Base of all blocks.

    Args:
        dim: length of the style vector.
        n_images: style images of a training sample; the most that a block of fixed size takes.
        image_px: side of the style images in training.
    """

    reads_images = False
    any_number = True
    order_free = True

    def __init__(self, dim: int, n_images: int = 1, image_px: int = 64):
        super().__init__()
        self.dim, self.n_images, self.image_px = dim, n_images, image_px


class NoStyle(Aggregation):
    """Zeros whatever the images are: the model without style, for comparison."""

    def forward(self, vectors: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        return vectors.new_zeros(len(vectors), self.dim)


class Mean(Aggregation):
    """Mean over the valid images."""

    def forward(self, vectors: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        weights = valid.unsqueeze(-1).to(vectors.dtype)
        # Not a product: padding may hold anything, infinities included.
        kept = vectors.masked_fill(~valid.unsqueeze(-1), 0.0)
        return kept.sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)


class Max(Aggregation):
    """Maximum per channel over the valid images."""

    def forward(self, vectors: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        lowest = torch.finfo(vectors.dtype).min
        return vectors.masked_fill(~valid.unsqueeze(-1), lowest).amax(dim=1)


class Linear(Aggregation):
    """One linear layer on the concatenated vectors: a slot for each image."""

    any_number = order_free = False

    def __init__(self, dim: int, n_images: int = 1, image_px: int = 64):
        super().__init__(dim, n_images, image_px)
        self.project = nn.Linear(n_images * dim, dim)

    def forward(self, vectors: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        return self.project(fill_slots(vectors, valid, self.n_images).flatten(1))


class SetViT(Aggregation):
    """A small vision transformer on the images: the patches at one place of all images make one token.

    As in the paper, the images are stacked along channels and read by a transformer of their own, without a style
    encoder. Torch's encoder layers do the work; the class token's last state is the style vector.
    """

    reads_images = True
    any_number = order_free = False

    def __init__(self, dim: int, n_images: int = 1, image_px: int = 64, depth: int = 4):
        super().__init__(dim, n_images, image_px)
        self.patch_px = max(2, image_px // 8) if image_px < 128 else 8
        tokens = (image_px // self.patch_px) ** 2
        self.embed = nn.Conv2d(3 * n_images, dim, kernel_size=self.patch_px, stride=self.patch_px)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.position = nn.Parameter(0.02 * torch.randn(1, tokens + 1, dim))
        # A list of layers, not nn.TransformerEncoder: its constructor copies one layer's initial weights to all.
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                dim, _heads(dim), 2 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        b, n = valid.shape
        size = (self.image_px, self.image_px)
        if images.shape[-2:] != size:
            images = F.interpolate(images.flatten(0, 1), size, mode="bilinear", antialias=True).unflatten(0, (b, n))
        stacked = fill_slots(images, valid, self.n_images).flatten(1, 2)
        tokens = self.embed(stacked).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(b, -1, -1), tokens], dim=1) + self.position
        for layer in self.layers:
            tokens = layer(tokens)
        return self.norm(tokens[:, 0])


class Attention(Aggregation):
    """Pooling by attention: one learned query looks at all valid vectors (Lee et al. 2019, section 3.2).

    What it finds is added to the mean, so that before training it knows as much as the mean does.
    """

    def __init__(self, dim: int, n_images: int = 1, image_px: int = 64):
        super().__init__(dim, n_images, image_px)
        self.query = nn.Parameter(torch.randn(1, 1, dim) / math.sqrt(dim))
        self.attend = nn.MultiheadAttention(dim, _heads(dim), batch_first=True)
        self.mean = Mean(dim)
        self.refine = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim))

    def forward(self, vectors: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        # A row of padding alone would make the softmax 0 / 0; its result is replaced by the null style anyway.
        looked_at = valid | ~valid.any(dim=1, keepdim=True)
        vectors = vectors.masked_fill(~valid.unsqueeze(-1), 0.0)
        query = self.query.expand(len(vectors), -1, -1)
        found, _ = self.attend(query, vectors, vectors, key_padding_mask=~looked_at, need_weights=False)
        style = self.mean(vectors, valid) + found[:, 0]
        return style + self.refine(style)


def fill_slots(values: torch.Tensor, valid: torch.Tensor, slots: int) -> torch.Tensor:
    """Exactly `slots` entries a row, `(b, slots, ...)` from `values (b, n, ...)`: the valid ones, then those again.

    Raises:
        StedmError: a row has more valid entries than slots.
    """
    count = valid.sum(dim=1, keepdim=True)
    # Only where it can happen: looking costs a wait for the device.
    if valid.shape[1] > slots and int(count.max()) > slots:
        raise StedmError(
            f"style: {int(count.max())} style images, but this model's aggregation takes {slots} at most; "
            "give fewer, or train with attention, mean or max"
        )
    valid_first = torch.argsort((~valid).to(torch.uint8), dim=1, stable=True)
    slot = torch.arange(slots, device=valid.device).unsqueeze(0) % count.clamp(min=1)
    chosen = valid_first.gather(1, slot)
    return values[torch.arange(len(values), device=values.device).unsqueeze(1), chosen]


def _heads(dim: int) -> int:
    return math.gcd(4, dim)


AGGREGATIONS: dict[str, type[Aggregation]] = {
    "none": NoStyle,
    "mean": Mean,
    "max": Max,
    "linear": Linear,
    "set-vit": SetViT,
    "attention": Attention,
}
