"""What the values of masks mean: class indices, 0 and 255, colours, a number for each object.

All masks of a source are looked at together, since one alone tells little: a mask of one gland numbered 1 looks like
one of class 1.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from skimage.measure import label as connected

from stedm.errors import StedmError
from stedm.exchange.class_names import IGNORE_INDEX, ClassNames
from stedm.exchange.mask_files import COLOUR, MaskValues, counted, in_colours, looked_up, shown

_MOST_CLASSES = 64
"""Class indices beyond are something else."""
_FEW = 32
"""Colours that a drawing has; what was smoothed or is JPEG has more."""
_WITHIN, _ENOUGH, _SHADES = 16, 0.97, 8
"""Masks of two values were smoothed or are JPEG if so much of them is so near to black or white, and there are more
shades between than that."""
_ONE_PIECE = 0.9
_LISTED = 6
OBJECT = "object"


@dataclass(frozen=True)
class Look:
    """What a survey keeps of one mask."""

    values: np.ndarray
    counts: np.ndarray
    palette: dict[int, int]
    is_lossy: bool
    pieces: int
    """Connected regions of one value, the background's not among them."""

    @classmethod
    def at(cls, mask: MaskValues) -> "Look":
        values, counts = counted(mask.values)
        pieces = 0
        # Of two values nobody asks whether they are objects.
        if 2 < len(values) <= 4096:
            compact = looked_up(mask.values, {int(value): i for i, value in enumerate(values)}, np.uint16)
            pieces = int(connected(compact, background=0, connectivity=2).max())
        return cls(values, counts, mask.palette, mask.is_lossy, pieces)


@dataclass(frozen=True)
class Labels:
    """How the masks of a source become class indices."""

    classes: list[str]
    encoding: str
    """In words."""
    table: dict[int, int]
    """Class index of each value."""
    others: int | None = None
    """Class of values that are not in the table: of all further objects."""
    as_colours: bool = False
    cut: int | None = None
    """From this grey value on it is class 1."""
    notes: list[str] = field(default_factory=list)

    def indices(self, mask: MaskValues) -> np.ndarray:
        """uint8 (H, W) of class indices and the ignored one; `StedmError` for a value that is no class."""
        values = mask.colours if self.as_colours else mask.values
        if self.cut is not None:
            return (values >= self.cut).astype(np.uint8)
        strangers = [value for value in counted(values)[0].tolist() if value not in self.table]
        if strangers and self.others is None:
            raise StedmError(f"value {listed(strangers)} is no class; {_known(self)}")
        return looked_up(values, self.table, np.uint8, self.others or 0)

    def pixels(self, look: "Look") -> dict[int, int]:
        """Pixels of each class in a mask that was looked at."""
        values = in_colours(look.values, look.palette) if self.as_colours else look.values
        pixels: dict[int, int] = {}
        for value, count in zip(values.tolist(), look.counts.tolist(), strict=True):
            index = int(value >= self.cut) if self.cut is not None else self.table.get(value, self.others)
            pixels[index] = pixels.get(index, 0) + count
        return pixels


def _known(labels: Labels) -> str:
    return f"known are {listed(sorted(labels.table))}"


def listed(values: Sequence[int]) -> str:
    """The first few values of a line."""
    more = f" and {len(values) - _LISTED} more" if len(values) > _LISTED else ""
    return ", ".join(map(shown, values[:_LISTED])) + more


def decide(looks: Iterable[Look], names: ClassNames | None, where: str) -> Labels:
    """What the values of all masks of a source mean.

    Args:
        names: what `--classes` says; None = classes get names of their own.
        where: begins error lines.

    Raises:
        StedmError: the values can be meant in several ways, or are no classes.
    """
    looks = list(looks)
    as_colours = _are_colours(looks)
    counts: Counter[int] = Counter()
    for look in looks:
        values = in_colours(look.values, look.palette) if as_colours else look.values
        for value, count in zip(values.tolist(), look.counts.tolist(), strict=True):
            counts[value] += count
    if names is not None and names.has_values:
        return _as_given(names, counts, as_colours, where)
    if names is not None and names.ranges:  # ignored values alone
        counts = Counter({value: n for value, n in counts.items() if names.index_of(value) is None})
    labels = _of_colours(looks, counts, names, where) if as_colours else _of_numbers(looks, counts, names, where)
    ignored = {} if names is None else {first: IGNORE_INDEX for _, first, last in names.ranges if first == last}
    return Labels(**{**vars(labels), "table": labels.table | ignored})


def _are_colours(looks: Sequence[Look]) -> bool:
    """Whether the masks are pictures in colours; a palette in one order throughout means its indices."""
    if any((look.values >= COLOUR).any() for look in looks):
        return True
    seen: dict[int, int] = {}
    return any(seen.setdefault(index, colour) != colour for look in looks for index, colour in look.palette.items())


def _as_given(names: ClassNames, counts: Counter[int], as_colours: bool, where: str) -> Labels:
    """By the values that `--classes` names; colours of masks that are grey are greys."""
    colours = any(first >= COLOUR for _, first, _ in names.ranges)
    if colours and not as_colours:
        as_colours, counts = True, Counter({COLOUR | value * 0x010101: n for value, n in counts.items() if value < 256})
    if as_colours and not colours:
        raise StedmError(f"{where}: the masks are in colours, {listed(_often(counts))}; give --classes these")
    found = {value: names.index_of(value) for value in counts}
    if strangers := sorted(value for value, index in found.items() if index is None):
        raise StedmError(
            f"{where}: masks hold {listed(strangers)}, which --classes gives to no class; add it, or "
            f"ignore={shown(strangers[0])}"
        )
    return Labels(
        names.names, "as --classes says", {v: i for v, i in found.items() if i is not None}, as_colours=as_colours
    )


# ---- numbers ----------------------------------------------------------------------------------------------------


def _of_numbers(looks: Sequence[Look], counts: Counter[int], names: ClassNames | None, where: str) -> Labels:
    values, given = sorted(counts), None if names is None else names.names
    if values[0] < 0 or (len(values) == 1 and values[0] == 0):
        raise StedmError(f"{where}: masks hold nothing but {listed(values)}; name others with --masks")
    if len(values) <= 2 and values[0] == 0 and (given is None or len(given) == 2):
        return Labels(given or ["background", OBJECT], f"two values, 0 and {values[1]}", {0: 0, values[1]: 1})
    if _is_smoothed(looks, counts):
        return _cut(looks, given, where)
    if are_objects(looks) and (given is None or len(given) == 2):
        most = max(int(look.values.max()) for look in looks)
        return Labels(given or ["background", OBJECT], f"a number for each object, 0 to {most}", {0: 0}, others=1)
    classes = [value for value in values if value != IGNORE_INDEX] if len(values) > 2 or values[0] > 0 else values
    n = len(given) if given else min(_MOST_CLASSES, classes[-1] + 1)
    ignored = {IGNORE_INDEX: IGNORE_INDEX} if IGNORE_INDEX in values and IGNORE_INDEX not in classes else {}
    also = ", 255 is ignored" if ignored else ""
    # Without a 0 anywhere they were counted from 1.
    if classes[0] == 1 and len(classes) > 1 and (classes[-1] == n if given else classes[-1] <= _MOST_CLASSES):
        table = {value: value - 1 for value in range(1, classes[-1] + 1)}
        own = given or [f"label {value}" for value in table]
        return Labels(own, f"class indices counted from 1, to {classes[-1]}{also}", table | ignored)
    if classes[-1] < n:
        own = given or ["background", *(f"label {index}" for index in range(1, n))]
        return Labels(own, f"class indices, {classes[0]} to {classes[-1]}{also}", {i: i for i in range(n)} | ignored)
    if are_objects(looks):
        one = "--classes background,NAME, or background=0,NAME=1-"
        raise StedmError(f"{where}: masks hold a number for each object; objects can be of one class only: {one}")
    raise StedmError(f"{where}: masks hold the values {listed(values)}; {_how_to_say(values, given)}")


def _is_smoothed(looks: Sequence[Look], counts: Counter[int]) -> bool:
    """Black and white with few pixels between; class indices up to 20 and 255 have none between."""
    between = [value for value in counts if _WITHIN < value < 255 - _WITHIN]
    if max(counts) > 255 or not (any(look.is_lossy for look in looks) or len(between) > _SHADES):
        return False
    black, white = (sum(counts[value] for value in ends) for ends in (range(_WITHIN + 1), range(255 - _WITHIN, 256)))
    return black + white >= _ENOUGH * counts.total() and white > 0


def _cut(looks: Sequence[Look], given: list[str] | None, where: str) -> Labels:
    if given is not None and len(given) != 2:
        raise StedmError(
            f"{where}: masks are black and white with smoothed edges, for {len(given)} classes; save them as drawn"
        )
    jpeg = "JPEG changes values" if any(look.is_lossy for look in looks) else "edges were smoothed"
    note = (
        f"masks are black and white, but {jpeg}: class 1 begins at 128; export them as PNG without smoothing if you can"
    )
    return Labels(given or ["background", OBJECT], "black and white, cut at 128", {}, cut=128, notes=[note])


def are_objects(looks: Sequence[Look]) -> bool:
    """Whether values number objects: each is one piece, they run from 1 on without gaps, and their number varies."""
    every = {value for look in looks for value in look.values.tolist()}
    # 255 without a 254 anywhere is what is ignored.
    last = {IGNORE_INDEX} if IGNORE_INDEX in every and IGNORE_INDEX - 1 not in every else set()
    numbered = [look.values[(look.values > 0) & ~np.isin(look.values, list(last))] for look in looks]
    some = [(look, ids) for look, ids in zip(looks, numbered, strict=True) if len(ids)]
    if not some:
        return False
    most = [int(ids.max()) for _, ids in some]
    if max(most) < 3 or (len(some) > 1 and len(set(most)) == 1):
        return False
    whole = np.mean([len(ids) == ids.max() for _, ids in some])
    pieces, values = (sum(parts) for parts in zip(*((look.pieces, len(ids)) for look, ids in some), strict=True))
    return values >= _ONE_PIECE * pieces and (whole >= 0.5 or max(most) > 255)


def _in_one_piece(looks: Sequence[Look]) -> bool:
    return sum(len(look.values) - 1 for look in looks) >= _ONE_PIECE * sum(look.pieces for look in looks)


def _how_to_say(values: Sequence[int], given: list[str] | None) -> str:
    own = [*(given or []), *(f"NAME{i}" for i in range(_LISTED))]
    example = ",".join(f"{name}={shown(value)}" for name, value in zip(own, values[:_LISTED], strict=False))
    return f'say which class each is: --classes "{example}{",..." if len(values) > _LISTED else ""}"'


# ---- colours ----------------------------------------------------------------------------------------------------


def _of_colours(looks: Sequence[Look], counts: Counter[int], names: ClassNames | None, where: str) -> Labels:
    often, given = _often(counts), None if names is None else names.names
    black = COLOUR
    # A colour of its own for each object, as some programs draw them.
    if (
        black in counts
        and len(often) > 3
        and (len(given) == 2 if given else len(often) > _FEW)
        and _in_one_piece(looks)
    ):
        found = given or ["background", OBJECT]
        return Labels(found, "a colour for each object", {black: 0}, others=1, as_colours=True)
    if len(often) > _FEW:
        if any(look.is_lossy for look in looks):
            raise StedmError(
                f"{where}: masks in JPEG hold {len(often)} colours, as JPEG changes them; export them as PNG"
            )
        raise StedmError(
            f"{where}: masks hold {len(often)} colours; are these the masks? if so, export them without smoothing"
        )
    order = [black, *(colour for colour in often if colour != black)] if black in counts else often
    if given is not None and (len(order) > 2 or len(given) != len(order) or black not in counts):
        raise StedmError(f"{where}: masks are in {len(order)} colours; {_how_to_say(order, given)}")
    own = given or [("background" if colour == black else shown(colour)) for colour in order]
    if len(own) < 2:
        raise StedmError(f"{where}: masks hold one colour alone, {listed(order)}; name others with --masks")
    return Labels(own, f"colours, {listed(order)}", {c: i for i, c in enumerate(order)}, as_colours=True)


def _often(counts: Counter[int]) -> list[int]:
    return [value for value, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
