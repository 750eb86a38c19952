"""Functions and docstrings of Python source files, read through ``ast``: nothing is imported."""

import ast
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = Function | ast.ClassDef | ast.Module


def source_files(folder: Path, skipped: frozenset[str] = frozenset()) -> Iterator[tuple[str, Path]]:
    """(path below ``folder``, file), sorted by name; without the folders ``skipped`` and anything private."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in skipped and not name.startswith("_"))
        for name in sorted(files):
            stem, suffix = os.path.splitext(name)
            if suffix == ".py" and stem not in skipped and (stem == "__init__" or not stem.startswith("_")):
                file = Path(place, name)
                yield file.relative_to(folder).as_posix(), file


def parse(file: Path) -> tuple[ast.Module, list[str]] | None:
    """Tree and lines of a source file; None for one that this Python cannot read."""
    try:
        source = file.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            return ast.parse(source), source.split("\n")
    except (SyntaxError, ValueError, OSError):
        return None


def walk_public(node: ast.AST, owners: tuple[str, ...] = ()) -> Iterator[tuple[str, Documented]]:
    """(dotted name, node) of the public classes, functions and methods below ``node``, in the order of the source."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not child.name.startswith("_"):
            names = (*owners, child.name)
            yield ".".join(names), child
            if isinstance(child, ast.ClassDef):
                yield from walk_public(child, names)
