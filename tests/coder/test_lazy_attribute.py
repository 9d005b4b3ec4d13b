"""Attributes that are computed once hold no lock meanwhile, which a fork would copy locked."""

import functools
import importlib
import pkgutil
import threading

import coder
from coder.lazy_attribute import lazy_attribute


class Slow:
    def __init__(self, go: threading.Event):
        self.go = go
        self.started = threading.Event()
        self.times = 0

    @lazy_attribute
    def value(self) -> int:
        """What it is."""
        self.started.set()
        assert self.go.wait(60)
        self.times += 1
        return self.times


def test_an_instance_does_not_wait_for_another() -> None:
    go, free = threading.Event(), threading.Event()
    free.set()
    slow, quick = Slow(go), Slow(free)
    first = threading.Thread(target=lambda: slow.value)
    first.start()
    assert slow.started.wait(60)
    second = threading.Thread(target=lambda: quick.value, daemon=True)
    second.start()
    second.join(20)
    done = quick.times
    go.set()
    first.join()
    assert done == 1
    assert (slow.value, slow.value, slow.times) == (1, 1, 1)  # computed once
    assert Slow.value.__doc__ == "What it is."


def test_no_class_of_the_coder_holds_a_lock_for_all_instances() -> None:
    names = [
        m.name for m in pkgutil.walk_packages(coder.__path__, "coder.") if "__main__" not in m.name
    ]
    found = [
        f"{name}.{kind.__name__}.{attribute}"
        for name in names
        for kind in vars(importlib.import_module(name)).values()
        if isinstance(kind, type)
        for attribute, value in vars(kind).items()
        if isinstance(value, functools.cached_property) and kind.__module__.startswith("coder")
    ]
    assert "coder.codecs.base" in names
    assert found == []
