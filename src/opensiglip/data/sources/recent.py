"""What a process keeps open: the most recently used of many files or tables."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """The last `most` values that `open` made. A copy in another process begins empty and opens its own."""

    def __init__(self, open: Callable[[Key], Value], most: int, close: Callable[[Value], None] | None = None) -> None:
        self.open, self.most, self.close = open, most, close
        self.values: OrderedDict[Key, Value] = OrderedDict()

    def __getitem__(self, key: Key) -> Value:
        if key not in self.values:
            self.values[key] = self.open(key)
            if len(self.values) > self.most:
                _, oldest = self.values.popitem(last=False)
                if self.close is not None:
                    self.close(oldest)
        self.values.move_to_end(key)
        return self.values[key]

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.open, self.most, self.close)
