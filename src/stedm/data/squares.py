"""How images of any shape become the squares that networks learn from."""

from stedm.data.folder import DatasetFolder


def shorter_sides(dataset: DatasetFolder) -> list[int]:
    """Smallest and largest shorter side, in pixels, of the images as stored; of image files only heads are read."""
    sides = [min(dataset.image_size(row)) for row in range(len(dataset))]
    return [min(sides), max(sides)]
