"""The aggregation block: the vectors of several style pictures become one style vector (paper, section 3).

Every block maps `vectors (b, n, d)` and `present (b, n)`, False at padding, to `(b, d)`. Each row has at least one
present picture. A new block is added to `AGGREGATIONS`.
"""

import torch
from torch import nn


class Mean(nn.Module):
    """Mean over the present pictures: any number of them, in any order."""

    def forward(self, vectors: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        weights = present.unsqueeze(-1).to(vectors.dtype)
        return (vectors * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)


class Max(nn.Module):
    """Maximum per channel over the present pictures: any number of them, in any order."""

    def forward(self, vectors: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        lowest = torch.finfo(vectors.dtype).min
        return vectors.masked_fill(~present.unsqueeze(-1), lowest).amax(dim=1)


AGGREGATIONS: dict[str, type[nn.Module]] = {"mean": Mean, "max": Max}
