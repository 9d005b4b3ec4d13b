"""Attributes that are computed on first use, without a lock."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class lazy_attribute(Generic[T]):
    """`functools.cached_property` as it is from Python 3.12 on.

    Python 3.11 holds one lock for all instances of a class while one computes; a process that is
    forked meanwhile waits for it for ever. Here two threads may compute the same value.
    """

    def __init__(self, function: Callable[[Any], T]):
        self._function = function
        self.__doc__ = function.__doc__

    def __get__(self, instance: Any, owner: type) -> T:
        if instance is None:
            return self  # type: ignore[return-value]
        value = self._function(instance)
        # Stored in the instance, where Python finds it before it calls this again.
        instance.__dict__[self._function.__name__] = value
        return value
