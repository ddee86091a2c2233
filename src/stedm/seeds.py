"""The one policy for randomness: every random decision is a pure function of (run seed, what it is for).

Nothing in the package touches global random state. A component asks for a generator by naming the decision, for
example `numpy_generator(seed, "diffusion", sample_index)`, so that sample i of a run is the same whether the run was
interrupted, sharded or executed alone (the images-seen idea of EDM2, Karras et al. 2024).
"""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def seed_for(run_seed: int, *ids: str | int) -> int:
    """Derive a 63-bit seed from a run seed and the identity of a decision.

    Stable across processes, machines and Python versions (SHA-256, not `hash`).
    """
    text = "/".join([str(int(run_seed)), *(str(part) for part in ids)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_generator(run_seed: int, *ids: str | int) -> np.random.Generator:
    """NumPy generator for one named decision."""
    return np.random.default_rng(seed_for(run_seed, *ids))


def torch_generator(run_seed: int, *ids: str | int) -> "torch.Generator":
    """CPU torch generator for one named decision (CPU, so that every device draws the same numbers)."""
    import torch

    return torch.Generator().manual_seed(seed_for(run_seed, *ids))
