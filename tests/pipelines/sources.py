"""Which sources a script executes, read from the sources themselves."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[2]


def imported_files(script: Path) -> set[str]:
    """Sources that running a script executes, the packages' __init__ files among them."""
    graph = package()
    files = pipeline_files(script)
    modules: set[str] = set()
    found = {name for path in files for name in imported_names(path)}
    while found:
        modules |= found
        imports = {name for each in found for name in graph.find_modules_directly_imported_by(each)}
        found = {parent for name in imports | found for parent in _lineage(name)} - modules
    sources = {_source_of(module) for module in modules}
    return {_relative(path) for path in files | sources}


def files_beside(imported: set[str]) -> set[str]:
    """Files of imported packages that are no Python: sources in C, templates."""
    found = set()
    for path in (ROOT / "src" / "trilith").rglob("*"):
        if path.is_file() and path.suffix not in {".py", ".pyc"}:
            home = next(folder for folder in path.parents if (folder / "__init__.py").exists())
            if _relative(home / "__init__.py") in imported:
                found.add(_relative(path))
    return found


def pipeline_files(script: Path) -> set[Path]:
    """A script and the scripts beside it that it imports."""
    files: set[Path] = set()
    found = {script}
    while found:
        files |= found
        names = {name for path in found for name in _imports(path)}
        found = {ROOT / "pipelines" / f"{name}.py" for name in names}
        found = {path for path in found if path.exists()} - files
    return files


def imported_names(path: Path) -> set[str]:
    """Modules of trilith that a file imports, with the packages they lie in."""
    names = {name for name in _imports(path) if name in package().modules}
    return {parent for name in names for parent in _lineage(name)}


def says_nothing(path: Path) -> bool:
    """True for a docstring and a version: no change of it changes what a stage writes."""
    nothing = (ast.Expr, ast.Assign)
    body = ast.parse(path.read_text()).body
    return all(isinstance(n, nothing) and isinstance(n.value, ast.Constant) for n in body)


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def package() -> grimp.ImportGraph:
    """Who imports whom in trilith."""
    return grimp.build_graph("trilith", cache_dir=None)


def _lineage(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[: length + 1]) for length in range(len(parts))]


def _source_of(module: str) -> Path:
    path = ROOT / "src" / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()
