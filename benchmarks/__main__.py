"""Runs every benchmark of this folder: `python -m benchmarks [NAME ...]`.

A benchmark is a module with a `main()` without arguments that prints its table. Names select some of them.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys

import benchmarks


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmarks and gives the exit code: 0 fine, 2 no benchmark of that name."""
    names = sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__) if module.name[0] != "_")
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in names}
    runnable = {name: module.main for name, module in modules.items() if hasattr(module, "main")}
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=benchmarks.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of: {', '.join(runnable) or 'none yet'}")
    wanted = parser.parse_args(argv).names or list(runnable)
    if unknown := [name for name in wanted if name not in runnable]:
        print(f"no benchmark {', '.join(unknown)}; there are: {', '.join(runnable) or 'none'}", file=sys.stderr)
        return 2
    if not wanted:
        print("There is no benchmark yet: a module with a main() in benchmarks/ is one.")
    for name in wanted:
        print(f"== {name}", flush=True)
        runnable[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
