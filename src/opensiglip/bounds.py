"""`Bounds`: the numbers that a keyword accepts, written on the keyword: `momentum: Annotated[float, Bounds(...)]`."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from opensiglip.errors import UserError


@dataclass(frozen=True, repr=False)
class Bounds:
    """An interval; an end that is None is open to infinity. Of a keyword that takes several numbers, each is inside."""

    at_least: float | None = None
    more_than: float | None = None
    at_most: float | None = None
    less_than: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (isinstance(value, int) or math.isfinite(value))
            and (self.at_least is None or value >= self.at_least)
            and (self.more_than is None or value > self.more_than)
            and (self.at_most is None or value <= self.at_most)
            and (self.less_than is None or value < self.less_than)
        )

    def __repr__(self) -> str:
        return f"Bounds({self})"

    def __str__(self) -> str:
        named = {
            "at least": self.at_least,
            "more than": self.more_than,
            "at most": self.at_most,
            "less than": self.less_than,
        }
        return " and ".join(f"{words} {end}" for words, end in named.items() if end is not None)


def bounds_of(function: Callable[..., Any]) -> dict[str, Bounds]:
    """The bounds that stand on the keywords of a function or the fields of a dataclass."""
    try:
        hints = get_type_hints(function, include_extras=True)
    except NameError:  # a user's annotations that name what is imported for type checkers only
        hints = {name: keyword.annotation for name, keyword in inspect.signature(function).parameters.items()}
    found = {
        name: next((x for x in getattr(hint, "__metadata__", ()) if isinstance(x, Bounds)), None)
        for name, hint in hints.items()
    }
    return {name: bounds for name, bounds in found.items() if bounds is not None}


def check_bounds(function: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Raises UserError on the first of a function's keywords whose number lies outside its bounds; None passes."""
    bounds = bounds_of(function)
    for name, value in values.items():
        numbers = value if isinstance(value, list | tuple) else [value]
        for number in numbers if name in bounds else ():
            if isinstance(number, int | float) and number not in bounds[name]:
                flag = f"--{name.replace('_', '-')}"
                raise UserError(f"{flag} {str(number)[:40]} is out of range; give a number of {bounds[name]}.")
