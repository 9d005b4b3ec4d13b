"""Unpickles data without running code, in time and memory that the size of the pickle bounds.

The base is the standard library's unpickler in Python, which pandas and joblib subclass too. The
one in C has no place for a guard: it allocates what a memo index asks for, and hashes nested keys
for ever.
"""

import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any, ClassVar

from coder import FileError

_OPERATIONS = {
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "NONE", "NEWTRUE", "NEWFALSE", "INT",
    "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING",
    "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2",
    "TUPLE3", "EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_DICT", "DICT", "SETITEM",
    "SETITEMS", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET",
    "GLOBAL", "STACK_GLOBAL", "BINPERSID", "REDUCE", "NEWOBJ", "BUILD",
}  # fmt: skip
_MAX_ARGUMENTS = 32  # of a call; tensors and inert records need fewer
_MAX_KEY_PARTS = 8
INTEGER_LIMIT = 1 << 63  # integers in sizes and keys are below


class Record:
    """An object of an unknown class: its attributes, and nothing else."""

    def __init__(self, *_: Any) -> None:
        self.attributes: dict[Any, Any] = {}


class DataUnpickler(pickle._Unpickler):
    """Builds numbers, strings, lists, tuples, dictionaries and what `find_class` returns.

    A subclass defines `find_class`, which has to raise for every name that is not allowed, and
    `persistent_load`. Everything that `find_class` returns may be called by the pickle.

    Raises:
      FileError: an operation, a call or a key that no model's state needs. Damaged pickles raise
        other errors as well.
    """

    # Attributes of the base class that its stub leaves out.
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, content: bytes):
        for operation, _, _ in pickletools.genops(content):
            if operation.name not in _OPERATIONS:
                raise FileError(
                    f"a pickle with {operation.name}, which no model's state needs: refused"
                )
        super().__init__(io.BytesIO(content), encoding="latin-1")

    def load_reduce(self) -> None:
        """Call a function; thousands of arguments, copied again and again, would take for ever."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(arguments) is not tuple or len(arguments) > _MAX_ARGUMENTS:
            raise FileError("a call that no tensor needs: refused")
        self.append(function(*arguments))

    def load_build(self) -> None:
        """Set the attributes of a record: the original would set those of our own objects."""
        state, made = self.stack.pop(), self.stack[-1]
        if not isinstance(made, Record | dict):
            raise FileError("a pickle that sets the state of what has none: damaged")
        # TorchScript and NumPy write tuples now and then; a dictionary's own state (a state_dict's
        # versions) is of no use.
        if isinstance(made, Record) and isinstance(state, dict):
            made.attributes = state

    def load_dict(self) -> None:
        """Make a dictionary of what lies above the mark."""
        items = self.pop_mark()
        self.append({})
        self._set(items)

    def load_setitem(self) -> None:
        """Set one item."""
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def load_setitems(self) -> None:
        """Set the items above the mark."""
        self._set(self.pop_mark())

    def _set(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not dict:
            raise FileError("a pickle that sets items of what is no dictionary: damaged")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Nested tuples and huge integers take for ever to hash.
            parts = key if type(key) is tuple and len(key) <= _MAX_KEY_PARTS else (key,)
            if not all(_is_plain(part) for part in parts):
                raise FileError("a dictionary whose keys are no plain values: refused")
            self.stack[-1][key] = value

    dispatch: ClassVar[dict[int, Any]] = pickle._Unpickler.dispatch | {
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_reduce,
        pickle.BUILD[0]: load_build,
        pickle.DICT[0]: load_dict,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, int):
        return -INTEGER_LIMIT <= value < INTEGER_LIMIT
    return value is None or isinstance(value, str | float | bytes)
