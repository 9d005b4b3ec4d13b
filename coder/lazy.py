"""Attributes that are computed when they are first asked for, without a lock."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")


class lazy(Generic[T]):
    """As `functools.cached_property` is from Python 3.12 on.

    In 3.11 one lock is held for all instances of a class while one computes, so that a process
    that is forked meanwhile waits for it for ever. Two threads may compute the same value.
    """

    def __init__(self, function: Callable[[Any], T]):
        self._function = function
        self.__doc__ = function.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> "lazy[T]": ...

    @overload
    def __get__(self, instance: object, owner: type) -> T: ...

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        value = self._function(instance)
        # In the instance, where it is found before this is asked again.
        instance.__dict__[self._function.__name__] = value
        return value
