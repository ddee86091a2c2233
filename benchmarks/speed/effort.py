"""How much is measured, all in one place."""

from dataclasses import dataclass, field

GROWTH_SIZES: dict[str, tuple[int, ...]] = {
    "style images": (1, 2, 4, 8, 16, 32),
    "planned images": (100, 300, 1000, 3000, 10_000),
    "patients": (10, 30, 100, 300, 1000),
    "image size": (32, 64, 128, 256, 512),
}


@dataclass(frozen=True)
class Effort:
    """The defaults end in a few minutes on one core; tests take less."""

    repeats: int = 5
    """Rounds in which all variants are measured in turns."""
    steps: int = 30
    """Training steps measured, after `warm_up_steps`."""
    warm_up_steps: int = 6
    profiled_steps: int = 3
    """Training steps under torch.profiler, after the measured ones."""
    images: int = 1000
    """Images of the plan that is executed."""
    matmul_n: int | None = None
    """Side of the matrices of the peak; None = large enough for the device."""
    growth_sizes: dict[str, tuple[int, ...]] = field(default_factory=lambda: dict(GROWTH_SIZES))
    growth_seconds: float = 4.0
    """Time after which a size is not repeated any more (up to three times)."""
