"""Reads the imports of a package from its source and says which of them the design does not allow."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

MAX_LINES = 400

# Which unit (first name below profiler) may import which others. `errors` may be imported by all.
ALLOWED: dict[str, frozenset[str]] = {
    "__init__": frozenset({"api", "profile_report", "analysis", "capture", "quant"}),  # see LAZY
    "__main__": frozenset({"cli"}),
    "cli": frozenset({"api", "console", "records", "profile_report", "store", "target"}),
    "console": frozenset({"records", "profile_report"}),
    "target": frozenset(),
    "api": frozenset({"capture", "quant", "metrics", "analysis", "records", "profile_report", "store"}),
    "capture": frozenset({"quant", "metrics", "records"}),
    "metrics": frozenset({"records"}),
    "analysis": frozenset({"records"}),
    "profile_report": frozenset({"report", "store", "records"}),
    "report": frozenset({"records", "store"}),
    "store": frozenset({"records"}),
    "records": frozenset(),
    "errors": frozenset(),
    "quant": frozenset(),
}
# Packages from outside the standard library, by unit; a longer prefix (`quant.deploy`) adds to a shorter one.
EXTERNAL: dict[str, frozenset[str]] = {
    "cli": frozenset({"sample_models"}),
    "console": frozenset({"rich"}),
    "api": frozenset({"torch"}),
    "capture": frozenset({"torch"}),
    "metrics": frozenset({"torch"}),
    "quant": frozenset({"torch"}),
    "quant.deploy": frozenset({"numpy", "onnx", "onnxruntime"}),
    "store": frozenset({"cattrs"}),
    "report": frozenset({"pandas", "numpy", "tabulate", "matplotlib", "jinja2", "markupsafe", "bokeh"}),
}
TYPING_ONLY: dict[str, frozenset[str]] = {"profile_report": frozenset({"pandas"})}
LAZY = frozenset({"__init__"})  # may import its units under TYPE_CHECKING only, so that `import profiler` stays light
ROOT_NAMES = frozenset({"__version__"})  # what may be imported from the package itself
# torch's own quantization, and the alias under which it is still found
FORBIDDEN_MODULES = ("torch.ao", "torch.quantization", "torch.nn.quantized", "torch.nn.qat", "torch.nn.intrinsic")
FORBIDDEN_NAMES = frozenset(
    f"torch.{name}"
    for name in "qint8 quint8 qint32 quint4x2 quint2x4 quantize_per_tensor quantize_per_channel dequantize".split()
)


@dataclass(frozen=True)
class Import:
    """One imported module: by whom, on which line, and whether for type checkers only."""

    importer: str
    module: str
    line: int
    is_typing: bool


@dataclass(frozen=True)
class Package:
    """The parsed source of a package: module name -> syntax tree, and the path of each."""

    name: str
    trees: Mapping[str, ast.Module]
    paths: Mapping[str, Path]

    def unit(self, module: str) -> str:
        parts = module.split(".")
        return parts[1] if len(parts) > 1 else "__init__"


def read_package(folder: Path) -> Package:
    """Parses every .py file below a package's folder."""
    paths: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.py")):
        parts = list(path.relative_to(folder.parent).with_suffix("").parts)
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    trees = {name: ast.parse(path.read_text("utf-8"), str(path)) for name, path in paths.items()}
    return Package(folder.name, trees, paths)


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _import_nodes(node: ast.AST, is_typing: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """All import statements below a node, those in functions too, with a flag for the type-checking ones."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node, is_typing
    elif isinstance(node, ast.If) and _is_type_checking(node.test):
        for child in node.body:
            yield from _import_nodes(child, True)
        for child in node.orelse:
            yield from _import_nodes(child, is_typing)
    else:
        for child in ast.iter_child_nodes(node):
            yield from _import_nodes(child, is_typing)


def _absolute(package: Package, importer: str, node: ast.ImportFrom) -> str:
    if node.level == 0:
        return node.module or ""
    parts = importer.split(".")
    is_package = package.paths[importer].name == "__init__.py"
    base = parts[: len(parts) - node.level + is_package]
    return ".".join(base + ([node.module] if node.module else []))


def find_imports(package: Package) -> list[Import]:
    """Every import of a package, relative ones made absolute. `from a import b` names `a.b` where that is a module,

    and for a name inside the package's root, so that a public name cannot be used to go round the rules.
    """
    found: list[Import] = []
    for importer, tree in package.trees.items():
        for node, is_typing in _import_nodes(tree):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                base = _absolute(package, importer, node)
                names = [f"{base}.{alias.name}" for alias in node.names]
                keep_name = base in (package.name, "torch")
                modules = [name if keep_name or name in package.trees else base for name in names]
            found += [Import(importer, module, node.lineno, is_typing) for module in dict.fromkeys(modules)]
    return found


def _external_allowed(item: Import) -> frozenset[str]:
    parts = item.importer.split(".")[1:] or ["__init__"]
    prefixes = [".".join(parts[:i]) for i in range(1, len(parts) + 1)]
    allowed = frozenset[str]().union(*(EXTERNAL.get(prefix, frozenset()) for prefix in prefixes))
    return allowed | TYPING_ONLY.get(parts[0], frozenset()) if item.is_typing else allowed


def _check_inside(package: Package, item: Import) -> str | None:
    source, target = package.unit(item.importer), package.unit(item.module)
    if target == "__init__" or item.module.split(".")[-1] in ROOT_NAMES or source == target:
        return None
    if source not in ALLOWED:
        return f"unit '{source}' is not in the table of allowed imports"
    if item.module.count(".") == 1 and item.module not in package.trees:
        return f"'{target}' is a name of the package's root: import it from its own module"
    if target != "errors" and target not in ALLOWED[source]:
        return f"{source} may not import {target}"
    if source in LAZY and not item.is_typing:
        return f"{source} may import {target} under TYPE_CHECKING only"
    return None


def check_arrows(package: Package) -> list[str]:
    """Imports that break the table of units, and packages from outside that a unit may not use."""
    problems: list[str] = []
    for item in find_imports(package):
        top = item.module.split(".")[0]
        message: str | None = None
        if top == package.name:
            message = _check_inside(package, item)
        elif top not in sys.stdlib_module_names and top not in _external_allowed(item):
            message = f"{package.unit(item.importer)} may not import {top}"
        if message:
            problems.append(f"{item.importer}:{item.line}: {message}")
    return problems


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def check_torch_quantization(package: Package) -> list[str]:
    """Uses of torch's own quantization package or of its quantized dtypes, by import or by attribute."""

    def is_forbidden(name: str) -> bool:
        return name in FORBIDDEN_NAMES or any(name == bad or name.startswith(f"{bad}.") for bad in FORBIDDEN_MODULES)

    problems = [
        f"{item.importer}:{item.line}: imports {item.module}"
        for item in find_imports(package)
        if is_forbidden(item.module)
    ]
    for module, tree in package.trees.items():
        problems += [
            f"{module}:{node.lineno}: uses {_dotted(node)}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and _dotted(node) in FORBIDDEN_NAMES | set(FORBIDDEN_MODULES)
        ]
    return problems


def find_cycle(package: Package) -> list[str]:
    """The modules of one import cycle in order, the first repeated at the end; empty if there is none.

    Imports inside functions count; those for type checkers only do not, since they never run.
    """
    edges: dict[str, list[str]] = {name: [] for name in package.trees}
    for item in find_imports(package):
        if not item.is_typing and item.module in edges and item.module != item.importer:
            edges[item.importer].append(item.module)
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for target in edges[module]:
            if cycle := visit(target, [*path, module]):
                return cycle
        done.add(module)
        return []

    return next((cycle for name in edges if (cycle := visit(name, []))), [])


def check_print(package: Package, allowed: frozenset[str] = frozenset({"cli"})) -> list[str]:
    """Calls of print() outside the command line."""
    return [
        f"{module}:{node.lineno}: print() outside {', '.join(sorted(allowed))}"
        for module, tree in package.trees.items()
        if package.unit(module) not in allowed
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


def check_sizes(paths: list[Path], limit: int = MAX_LINES) -> list[str]:
    """Files with more lines than the limit."""
    counts = {path: len(path.read_text("utf-8").splitlines()) for path in paths}
    return [f"{path}: {count} lines, the limit is {limit}" for path, count in counts.items() if count > limit]
