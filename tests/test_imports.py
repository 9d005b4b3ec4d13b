"""The rooms of the packages: imports point one way, nothing is imported in a circle, names differ.

Read from the sources, so that lazy imports, those under TYPE_CHECKING and those of a package's own
`__init__` count as well.
"""

import ast
from collections import defaultdict
from pathlib import Path

import pytest
from folders import ROOT

PACKAGES = ("coder", "nec_jax", "train")


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for package in PACKAGES for path in (ROOT / package).rglob("*.py")}


def imported(name: str) -> set[str]:
    """All that a module imports, anywhere in it: modules of ours, and first names of others."""
    path, found = MODULES[name], set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            # A name is a module, or what is defined in one.
            names = [full if full in MODULES else node.module for full in names]
        else:
            continue
        found |= {full if full in MODULES else full.partition(".")[0] for full in names}
    return found


IMPORTS = {name: imported(name) for name in MODULES}


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Every set of nodes that reach one another, of at least two (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in edges.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            circle = [stack.pop()]
            while circle[-1] != node:
                circle.append(stack.pop())
            if len(circle) > 1:
                found.append(sorted(circle))

    for node in edges:
        if node not in index:
            visit(node)
    return found


def test_circles_are_found():
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"a"}}
    assert circles(edges) == [["b", "c"]]


def test_no_module_is_imported_in_a_circle():
    assert circles({name: own & MODULES.keys() for name, own in IMPORTS.items()}) == []


def test_no_folder_imports_another_in_a_circle():
    """Folders below the packages; what lies in a package's own folder is its base and its door."""

    def room(name: str) -> str:
        return name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]

    rooms: dict[str, set[str]] = defaultdict(set)
    for name, own in IMPORTS.items():
        rooms[room(name)] |= {room(other) for other in own & MODULES.keys()} - {room(name)}
    inner = {name: {o for o in own if "." in o} for name, own in rooms.items() if "." in name}
    assert circles(inner) == []


@pytest.mark.parametrize(
    ("package", "others"), [("coder", {"nec_jax", "train"}), ("nec_jax", {"train"})]
)
def test_imports_point_one_way(package, others):
    for name, own in IMPORTS.items():
        if name.partition(".")[0] == package:
            assert {other.partition(".")[0] for other in own}.isdisjoint(others), name


def test_coder_never_imports_jax():
    for name, own in IMPORTS.items():
        if name.partition(".")[0] == "coder":
            assert own.isdisjoint({"jax", "flax", "optax", "orbax", "tensorflow"}), name


def test_no_two_modules_share_a_name():
    """But importers, which are called what they import, and `cli`, which means the same always."""
    places: dict[str, list[str]] = defaultdict(list)
    for name in MODULES:
        if not name.startswith("nec_jax.convert."):
            places[name.rpartition(".")[2]].append(name)
    shared = {last: names for last, names in places.items() if len(names) > 1}
    assert shared.keys() <= {"__main__", "cli"}, shared
