"""The semi-supervised baseline: weak-to-strong consistency on images of unlabeled patients, without their masks.

UniMatch V2 (Yang et al. 2025, arXiv 2410.10777) at a small scale: a teacher, the exponential average of the network
(mean teacher, Tarvainen & Valpola 2017), sees an image that is only turned and zoomed; where it is sure of a class
(FixMatch, Sohn et al. 2020), that class is the truth for two strong views of the image. Strong are: stain, colour
and blur, a rectangle of another image (CutMix, Yun et al. 2019), and complementary halves of the encoder's channels.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from stedm.config import RecolourConfig, SegmentationConfig
from stedm.data.symmetry import to_signed
from stedm.segmentation.augment import augment_colours, augment_geometry
from stedm.segmentation.model import SegmentationLoss
from stedm.training.trainer import Trainer

CONFIDENCE = 0.95
"""Pixels whose most probable class has a lower probability, by the teacher, teach nothing."""
WEIGHT = 1.0
"""Weight of the loss on unannotated images, that on annotated ones being 1."""
RAMP_UP = 0.25
"""The weight rises from almost 0 in this part of the steps."""
EMA_DECAY = 0.99
"""Largest decay of the teacher's weights."""
STRONG_FACTOR = 1.5
"""The strong views' colour changes and blur, in strengths of `segmentation.stain`."""
CUTMIX = 0.5
"""Part of the strong views that get a rectangle of another image."""
FEATURE_DROPOUT = 0.5
"""Part of the unannotated images of which each strong view loses one half of the encoder's channels."""

Channels = list[Tensor]
"""Per level of the encoder, factors (n, channels, 1, 1) on its features."""


class StudentAndTeacher(nn.Module):
    """A network and its teacher in one module, so that a checkpoint holds both.

    The teacher learns nothing by gradient and is always in evaluation mode. Its batch statistics are averaged too.
    Channels are dropped in networks of segmentation_models_pytorch; of others nobody knows which are the encoder's.
    """

    def __init__(self, network: nn.Module, ema_decay: float = EMA_DECAY):
        super().__init__()
        self.student = network

        def average(teacher: list[Tensor], student: list[Tensor], n: Tensor) -> None:
            decay = min(1 - 1 / (int(n) + 1), ema_decay)
            for mean, value in zip(teacher, student, strict=True):
                # Batch norms count their batches in whole numbers, which are not averaged.
                mean.lerp_(value, 1 - decay) if mean.is_floating_point() else mean.copy_(value)

        self.teacher = AveragedModel(network, multi_avg_fn=average, use_buffers=True).requires_grad_(False)

    def train(self, mode: bool = True) -> "StudentAndTeacher":
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, images: Tensor, channels: Channels) -> Tensor:
        """The student's logits (n, classes, H, W), its encoder's features multiplied by `channels` (none: as it is)."""
        if not channels:
            return self.student(images)
        image, *features = self.student.encoder(images)
        features = [feature * factor for feature, factor in zip(features, channels, strict=True)]
        return self.student.segmentation_head(self.student.decoder([image, *features]))

    def update_teacher(self) -> None:
        self.teacher.update_parameters(self.student)

    def dropped_channels(self, n: int, part: float, generator: torch.Generator) -> tuple[Channels, Channels]:
        """For the two strong views of n images: the channels that one loses are those that the other keeps, doubled.

        An image keeps all channels in both views with probability 1 - `part`.
        """
        from segmentation_models_pytorch.base import SegmentationModel

        if not isinstance(self.student, SegmentationModel):
            return [], []
        first, second = [], []
        perturbed = (torch.rand(n, 1, generator=generator) < part).float()
        for width in self.student.encoder.out_channels[1:]:
            half = (torch.rand(n, width, generator=generator) < 0.5).float() * 2
            for views, factor in ((first, half), (second, 2 - half)):
                views.append((1 + perturbed * (factor - 1))[:, :, None, None])
        return first, second


@dataclass(frozen=True)
class Consistency:
    """The loss of an `ssl` arm; all that it draws comes from the trainer's generator of the step."""

    config: SegmentationConfig
    recolour: RecolourConfig
    loss_of: SegmentationLoss

    def loss(self, trainer: Trainer, images: Tensor, masks: Tensor, unlabeled: Tensor) -> Tensor:
        """The loss on annotated images plus the weighted one on unannotated ones.

        images (n, 3, H, W) in [-1, 1] and masks (n, H, W) are augmented; unlabeled: uint8 (m, H, W, 3).
        """
        learner = trainer.accelerator.unwrap_model(trainer.network)
        # First here, not last in a step: a checkpoint is then the same whether or not the run goes on.
        if trainer.part == 0:
            learner.update_teacher()
        strong, pseudo_labels = self.strong_views(trainer, learner.teacher, unlabeled)
        dropped = learner.dropped_channels(len(unlabeled), FEATURE_DROPOUT, trainer.generator)
        intact = torch.ones(len(images), 1, 1, 1)
        channels = [
            torch.cat([intact.expand(-1, a.shape[1], 1, 1), a, b]).to(images.device)
            for a, b in zip(*dropped, strict=True)
        ]
        # One pass for all: batch norms then see annotated and unannotated patients together, as they will in use.
        with trainer.autocast():
            logits = trainer.network(torch.cat([images, strong]), channels)
        of_annotated, of_strong = logits.float().split([len(images), len(strong)])
        unsupervised = consistency_loss(of_strong, pseudo_labels, self.loss_of.ignore_index)
        return self.loss_of(of_annotated, masks) + self.weight(trainer.step_done) * unsupervised

    def weight(self, step: int) -> float:
        """Weight of the loss on unannotated images: rises as in Laine & Aila 2017."""
        ramp_up_steps = RAMP_UP * self.config.steps
        done = min(1.0, step / ramp_up_steps) if ramp_up_steps else 1.0
        return WEIGHT * math.exp(-5 * (1 - done) ** 2)

    def strong_views(self, trainer: Trainer, teacher: nn.Module, unlabeled: Tensor) -> tuple[Tensor, Tensor]:
        """Two strong views of each image, (2 m, 3, H, W) in [-1, 1], and what the teacher is sure of in them."""
        generator = trainer.generator
        blank = torch.zeros(unlabeled.shape[:3], dtype=torch.uint8, device=unlabeled.device)
        weak, _ = augment_geometry(unlabeled.permute(0, 3, 1, 2).float() / 255, blank, generator)
        with torch.no_grad(), trainer.autocast():
            logits = teacher(_signed(weak))
        labels = confident_labels(logits.float(), CONFIDENCE, self.loss_of.ignore_index)
        views, targets = [], []
        for _ in range(2):
            coloured = augment_colours(weak, generator, self.config.stain, self.recolour, factor=STRONG_FACTOR)
            mixed, target = cutmix(coloured, labels, CUTMIX, generator)
            views.append(_signed(mixed))
            targets.append(target)
        return torch.cat(views), torch.cat(targets)


def confident_labels(logits: Tensor, confidence: float, ignore_index: int) -> Tensor:
    """(n, C, H, W) -> (n, H, W): the most probable class, `ignore_index` where that is below `confidence`."""
    probability, labels = logits.softmax(dim=1).max(dim=1)
    return labels.masked_fill(probability < confidence, ignore_index)


def consistency_loss(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Cross-entropy summed over the pixels that have a label, divided by the number of all pixels."""
    return F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum") / labels.numel()


def cutmix(images: Tensor, labels: Tensor, probability: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Paste a rectangle of another image of the batch, and of its labels, into a part of the images.

    images (n, C, H, W), labels (n, H, W). As in UniMatch, rectangles have 2 to 40 % of the area and sides of a ratio
    of 0.3 to 1 / 0.3; the other image is the one as far from the end of the batch as this one from its beginning.
    """
    n, height, width = labels.shape
    chosen, area, ratio, y, x = torch.rand(5, n, 1, generator=generator)
    area, ratio = 0.02 + 0.38 * area, 0.3 ** (2 * ratio - 1)
    sides = (area * ratio).sqrt().clamp_max(1), (area / ratio).sqrt().clamp_max(1)

    def inside(size: int, side: Tensor, place: Tensor) -> Tensor:
        from_start = (torch.arange(size) + 0.5) / size - place * (1 - side)
        return (from_start >= 0) & (from_start < side)

    rows, columns = inside(height, sides[0], y), inside(width, sides[1], x)
    pasted = ((chosen < probability)[:, :, None] & rows[:, :, None] & columns[:, None, :]).to(labels.device)
    return torch.where(pasted[:, None], images.flip(0), images), torch.where(pasted, labels.flip(0), labels)


def _signed(images: Tensor) -> Tensor:
    return to_signed(images * 255).contiguous(memory_format=torch.channels_last)
