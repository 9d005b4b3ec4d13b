"""Reads pickles that hold data alone, in time and memory that their size bounds.

Pickle is a language that can call anything. This interpreter can only build numbers, strings,
containers and the objects of a table of names: it has a few dozen operations and refuses all
others. CPython's own unpickler could resolve names safely too, but can be made to allocate or hash
without end.
"""

import pickletools
from collections.abc import Callable
from typing import Any

from coder import FileError

Builder = Callable[..., Any]

_VALUES = frozenset(
    {
        "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
        "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
        "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    }
)  # fmt: skip
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# Tensors, parameters and inert records are made of fewer, and keys of fewer parts.
_MOST_ARGUMENTS = 32
_MOST_PARTS = 8
LARGEST = 1 << 63  # whole numbers in sizes and keys are below


class Record:
    """An object of an unknown class: its attributes, and nothing else."""

    def __init__(self, *_: Any) -> None:
        self.attributes: dict[Any, Any] = {}


def unpickle(
    content: bytes, find: Callable[[str, str], Any], persistent: Callable[[Any], Any]
) -> Any:
    """The object in a pickle.

    Args:
      content: the pickle.
      find: (module, name) -> what stands for it: a `Builder`, `Record`, or an inert value. It
        raises for names that are not allowed.
      persistent: persistent identifier -> object.

    Raises:
      FileError: an operation or a call that no state of a model needs. Damaged pickles raise other
        errors as well.
    """
    return _Machine(find, persistent).run(content)


class _Machine:
    def __init__(self, find: Callable[[str, str], Any], persistent: Callable[[Any], Any]):
        self._find, self._persistent = find, persistent
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # stacks under the marks
        self._memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        argument: Any
        for opcode, argument, _ in pickletools.genops(content):
            name = opcode.name
            if name in _VALUES:
                self._stack.append(argument)
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name])
            elif name in _TUPLES:
                self._join(_TUPLES[name])
            elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
                self._memo[argument] = self._stack[-1]
            elif name in ("BINGET", "LONG_BINGET", "GET"):
                self._stack.append(self._memo[argument])
            elif name == "GLOBAL":
                module, _, attribute = argument.partition(" ")
                self._stack.append(self._find(module, attribute))
            elif name not in ("PROTO", "FRAME", "STOP"):
                operation = getattr(self, f"_{name.lower()}", None)
                if operation is None:
                    raise FileError(f"a pickle with {name}, which no model's state needs: refused")
                operation()
        return self._stack.pop()

    def _join(self, count: int) -> None:
        start = len(self._stack) - count
        self._stack[start:] = [tuple(self._stack[start:])]

    def _mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        items = self._stack
        self._stack = self._below.pop()
        return items

    def _pop(self) -> None:
        self._stack.pop()

    def _pop_mark(self) -> None:
        self._since_mark()

    def _memoize(self) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _tuple(self) -> None:
        items = self._since_mark()
        self._stack.append(tuple(items))

    def _empty_list(self) -> None:
        self._stack.append([])

    def _empty_dict(self) -> None:
        self._stack.append({})

    def _list(self) -> None:
        items = self._since_mark()
        self._stack.append(items)

    def _dict(self) -> None:
        items = self._since_mark()
        self._stack.append({})
        self._fill(items)

    def _append(self) -> None:
        self._extend([self._stack.pop()])

    def _appends(self) -> None:
        self._extend(self._since_mark())

    def _extend(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise FileError("a pickle that appends to what is no list: damaged")
        self._stack[-1].extend(items)

    def _setitem(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._fill([key, value])

    def _setitems(self) -> None:
        self._fill(self._since_mark())

    def _fill(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not dict:
            raise FileError("a pickle that sets items of what is no dictionary: damaged")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Nested tuples and endless numbers take for ever to hash.
            parts = key if type(key) is tuple and len(key) <= _MOST_PARTS else (key,)
            if not all(_is_plain(part) for part in parts):
                raise FileError("a dictionary whose keys are no plain values: refused")
            self._stack[-1][key] = value

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise FileError("a name that is no string: damaged")
        self._stack.append(self._find(module, name))

    def _binpersid(self) -> None:
        self._stack.append(self._persistent(self._stack.pop()))

    def _reduce(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if type(arguments) is not tuple or len(arguments) > _MOST_ARGUMENTS:
            raise FileError("a call that no tensor needs: refused")
        self._stack.append(function(*arguments))

    _newobj = _reduce

    def _build(self) -> None:
        state, made = self._stack.pop(), self._stack[-1]
        if not isinstance(made, Record | dict):
            raise FileError("a pickle that sets the state of what has none: damaged")
        # TorchScript and NumPy write tuples now and then; a dictionary's own state (a state_dict's
        # versions) is of no use.
        if isinstance(made, Record) and isinstance(state, dict):
            made.attributes = state


def _is_plain(value: Any) -> bool:
    if isinstance(value, int):
        return -LARGEST <= value < LARGEST
    return value is None or isinstance(value, str | float | bytes)
