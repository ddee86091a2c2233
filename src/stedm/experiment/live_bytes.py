"""How much memory a computation holds at once, counted on its tensors as they come and go."""

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Count the bytes of all tensors that operators make while this mode is on, until they are freed.

    Views count once, with what they look at. Works on real tensors and on fake ones, which have shapes and no content.
    What libraries allocate for themselves, inside an operator, is not seen.

    Args:
        without: tensors that are there already, such as weights; their views count nothing.

    Attributes:
        now: bytes of the tensors that are alive.
        peak: the most that `now` was.
    """

    def __init__(self, without: Iterable[Tensor] = ()):
        super().__init__()
        self.now = self.peak = 0
        self._without = {tensor.untyped_storage()._cdata for tensor in without}
        self._alive: dict[int, tuple[weakref.ref, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                self._add(value)
        return result

    def forget(self, tensor: Tensor) -> None:
        """Count a tensor no longer, such as a gradient, which is counted elsewhere."""
        self._drop(tensor.untyped_storage()._cdata)

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._without or key in self._alive:
            return
        self._alive[key] = (weakref.ref(storage, lambda _: self._drop(key)), storage.nbytes())
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)

    def _drop(self, key: int) -> None:
        _, size = self._alive.pop(key, (None, 0))
        self.now -= size
