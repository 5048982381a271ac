"""Print the import graph of risbench: its levels, its circles, the imports between rooms, and which rooms reach torch.

    python tools/import_graph.py        (or: make graph)

A level is the longest chain of imports below a module. Imports inside functions and those for type checkers count, too.
The rules themselves are import-linter's contracts in pyproject.toml (`lint-imports`).
"""

from __future__ import annotations

import sys
from collections import Counter
from graphlib import CycleError, TopologicalSorter

import grimp

PACKAGE = "risbench"


def main() -> int:
    """Print the graph; exit 1 if modules import each other in a circle."""
    graph = grimp.build_graph(PACKAGE, include_external_packages=True, cache_dir=None)
    modules = sorted(module for module in graph.modules if module.startswith(f"{PACKAGE}."))
    imports = {module: _inside(graph.find_modules_directly_imported_by(module)) for module in modules}
    try:
        order = list(TopologicalSorter(imports).static_order())
    except CycleError as error:
        print(f"circle: {' -> '.join(error.args[1])}")
        return 1
    level: dict[str, int] = {}
    for module in order:  # what it imports comes first
        level[module] = 1 + max((level[below] for below in imports[module]), default=0)
    _print_levels(level)
    print("circles: none\n")
    _print_rooms(imports)
    _print_torch(graph, modules)
    return 0


def _inside(imported: set[str]) -> set[str]:
    return {module for module in imported if module.startswith(f"{PACKAGE}.")}


def _room(module: str) -> str:
    return module.split(".")[1]


def _print_levels(level: dict[str, int]) -> None:
    print(f"{len(level)} modules on {max(level.values())} levels")
    for number in sorted(set(level.values()), reverse=True):
        names = sorted(module.partition(".")[2] for module in level if level[module] == number)
        print(f"{number:4}  {', '.join(names)}")


def _print_rooms(imports: dict[str, set[str]]) -> None:
    pairs = ((_room(module), _room(below)) for module in imports for below in imports[module])
    between = Counter((upper, lower) for upper, lower in pairs if upper != lower)
    print("imports between rooms")
    for room in dict.fromkeys(upper for upper, _ in between):
        below = ", ".join(f"{lower} {count}" for (upper, lower), count in between.items() if upper == room)
        print(f"  {room:10} -> {below}")


def _print_torch(graph: grimp.ImportGraph, modules: list[str]) -> None:
    """Print how many modules of each room reach torch by any chain of imports, those inside functions included."""
    print("\nrooms that reach torch (modules that do, of all)")
    for room in dict.fromkeys(map(_room, modules)):
        inside = [module for module in modules if _room(module) == room]
        reaching = [module for module in inside if graph.chain_exists(importer=module, imported="torch")]
        print(f"  {room:10} {len(reaching)} of {len(inside)}")


if __name__ == "__main__":
    sys.exit(main())
