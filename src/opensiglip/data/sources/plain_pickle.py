"""Plain values of a pickle, as RefCOCO's files are: containers, texts and numbers, by a machine that can do no more.

Nothing is unpickled: the file's operations are listed by `pickletools`, which runs none of them, and only those that
build a list, tuple, dict, text, number, truth value or None are carried out here. One that names a class, calls
anything or refers to another file ends the reading.
"""

import pickletools
from typing import Any

MARK = object()
PUSHES = {  # operations that put their own argument on the stack
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
IGNORED = {"PROTO", "FRAME"}


class NotPlain(Exception):
    """The pickle holds something else than plain values, or is damaged; the message says what."""


def read_plain(data: bytes) -> Any:
    """The value. Raises NotPlain. Values may be shared within it: bound what you walk through."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for operation, argument, _ in pickletools.genops(data):
            if operation.name == "STOP":
                return stack.pop()
            step(operation.name, argument, stack, memo)
    except NotPlain:
        raise
    except Exception as error:  # pickletools raises all sorts over damaged bytes
        raise NotPlain(f"damaged: {type(error).__name__}") from None
    raise NotPlain("damaged: it has no end")


def step(name: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
    """Carry out one operation."""
    if name in PUSHES:
        stack.append(argument)
    elif name in CONSTANTS:
        stack.append(CONSTANTS[name])
    elif name == "MARK":
        stack.append(MARK)
    elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
        memo[argument] = stack[-1]
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif name in ("GET", "BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name in ("EMPTY_LIST", "EMPTY_DICT"):
        stack.append([] if name == "EMPTY_LIST" else {})
    elif name in ("LIST", "TUPLE", "DICT"):
        items = since_mark(stack)
        stack.append(items if name == "LIST" else tuple(items) if name == "TUPLE" else paired(items))
    elif name in TUPLES:
        items = stack[-TUPLES[name] :]
        del stack[-TUPLES[name] :]
        stack.append(tuple(items))
    elif name in ("APPEND", "APPENDS"):
        items = [stack.pop()] if name == "APPEND" else since_mark(stack)
        check(stack[-1], list).extend(items)
    elif name in ("SETITEM", "SETITEMS"):
        items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else since_mark(stack)
        check(stack[-1], dict).update(paired(items))
    elif name not in IGNORED:
        raise NotPlain(f"it holds more than plain values ({name})")


def since_mark(stack: list[Any]) -> list[Any]:
    """What was pushed since the last mark, taken off with it."""
    at = next(place for place in range(len(stack) - 1, -1, -1) if stack[place] is MARK)
    items = stack[at + 1 :]
    del stack[at:]
    return items


def paired(items: list[Any]) -> dict[Any, Any]:
    """Keys and values in turn as a dict; keys are texts and numbers."""
    keys = items[::2]
    if len(items) % 2 or not all(isinstance(key, str | int | float) for key in keys):
        raise NotPlain("a dict has a key that is neither text nor number")
    return dict(zip(keys, items[1::2], strict=True))


def check(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise NotPlain(f"damaged: something is put into a {type(value).__name__}")
    return value
