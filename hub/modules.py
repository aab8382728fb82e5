"""Parses source files of the package into statements, with the names that each one defines and uses."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import NamedTuple

DEFINITIONS = (ast.FunctionDef, ast.ClassDef)


class Import(NamedTuple):
    """`from module import name as alias`, or `import module as alias` if `name` is None."""

    module: str
    name: str | None
    alias: str | None


@dataclass(frozen=True)
class Statement:
    """A top-level statement of a module, with the comments above it.

    Args:
        names: Names that it binds; a call such as `operator.register_fake(...)` belongs to `operator`.
        uses: Names that it reads, including those in quoted annotations.
        text: Source with comments.
        gap: Number of blank lines above it.
        meaning: Equal for statements that do the same; None for classes and functions.
        is_import: Whether it is a guarded import.
    """

    names: frozenset[str]
    uses: frozenset[str]
    text: str
    gap: int
    meaning: str | None = None
    is_import: bool = False


@dataclass(frozen=True)
class Module:
    """A module of the package.

    Args:
        name: Full name, such as "contextseg.modeling.windows".
        docstring: Docstring of the module.
        statements: Its top-level statements except docstring, imports and `__all__`.
        siblings: Name imported from the package -> module that defines it.
        packages: Name imported from another package -> its import.
    """

    name: str
    docstring: str
    statements: tuple[Statement, ...]
    siblings: dict[str, str]
    packages: dict[str, Import]


@cache
def read_module(name: str) -> Module:
    """Reads a module once per process, so that all saves of a run contain the same code even if files change.

    Raises ValueError for code that cannot be moved into another file.
    """
    source = module_source(name)
    tree, lines = ast.parse(source), source.splitlines(keepends=True)
    statements, siblings, packages = [], {}, {}
    end = 0
    for index, node in enumerate(tree.body):
        start, end = end, node.end_lineno
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                if isinstance(node, ast.ImportFrom) and node.level:
                    siblings[alias.name] = imported_module(name, node, alias)
                else:
                    packages[alias.asname or alias.name.partition(".")[0]] = external_import(
                        name, node, alias
                    )
        elif not (is_docstring(node, index) or is_public_list(node)):
            statements.append(read_statement(name, node, "".join(lines[start:end])))
    return Module(name, ast.get_docstring(tree) or "", tuple(statements), siblings, packages)


def module_source(name: str) -> str:
    """Returns the source of a module. Raises ValueError if it does not exist or is a folder."""
    spec = find_spec(name)
    if spec is None:
        raise ValueError(f"there is no module {name} to export. Check the import of it.")
    if spec.submodule_search_locations is not None:
        raise ValueError(f"{name} is a folder. Import from the file that defines the name.")
    return Path(spec.origin).read_text(encoding="utf-8")


def imported_module(name: str, node: ast.ImportFrom, alias: ast.alias) -> str:
    """Returns the full name of the module in a relative import."""
    where = f"{name}, line {node.lineno}"
    if node.module is None:
        raise ValueError(f"{where}: `from . import name` cannot be exported. Write `from .name import ...`.")
    if alias.asname or alias.name == "*":
        raise ValueError(
            f"{where}: names of this package cannot be renamed or imported by `*`. Import them by name."
        )
    return resolve_name("." * node.level + node.module, name.rpartition(".")[0])


def external_import(name: str, node: ast.Import | ast.ImportFrom, alias: ast.alias) -> Import:
    module, member = (node.module, alias.name) if isinstance(node, ast.ImportFrom) else (alias.name, None)
    if module.partition(".")[0] == name.partition(".")[0]:
        raise ValueError(
            f"{name}, line {node.lineno}: imports its own package by name. Write a relative import."
        )
    return Import(module, member, alias.asname)


def is_docstring(node: ast.stmt, index: int) -> bool:
    return index == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def is_public_list(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"


def read_statement(module: str, node: ast.stmt, text: str) -> Statement:
    names = frozenset(bound_names(node))
    if not names:
        raise ValueError(f"{module}, line {node.lineno}: only definitions and imports can be exported.")
    for child in ast.walk(node):
        if isinstance(child, ast.ImportFrom) and child.level:
            raise ValueError(
                f"{module}, line {child.lineno}: relative imports belong at the top level of the file."
            )
    stripped = text.lstrip("\n")
    return Statement(
        names,
        frozenset(used_names(node)),
        stripped,
        gap=len(text) - len(stripped),
        meaning=None if isinstance(node, DEFINITIONS) else ast.unparse(node),
        is_import=isinstance(node, ast.If | ast.Try),
    )


def bound_names(node: ast.stmt) -> Iterator[str]:
    """Yields the names that a top-level statement binds; for a method call, the name of the object."""
    if isinstance(node, DEFINITIONS):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = ast.Tuple(node.targets) if isinstance(node, ast.Assign) else node.target
        yield from (child.id for child in ast.walk(targets) if isinstance(child, ast.Name))
    elif isinstance(node, ast.If | ast.Try):
        inner = (child for child in ast.walk(node) if child is not node and isinstance(child, ast.stmt))
        yield from (name for child in inner for name in bound_names(child))
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield from owner_of_call(node.value)


def owner_of_call(call: ast.Call) -> Iterator[str]:
    """Yields `operator` for `operator.register_fake(...)`, nothing for `function(...)`."""
    if isinstance(call.func, ast.Attribute):
        yield ast.unparse(call.func).partition(".")[0]


def used_names(node: ast.AST) -> Iterator[str]:
    for child in ast.walk(node):
        if isinstance(child, ast.Name):
            yield child.id
        for annotation in (getattr(child, "annotation", None), getattr(child, "returns", None)):
            yield from quoted_names(annotation)


def quoted_names(annotation: ast.expr | None) -> Iterator[str]:
    """Yields the names in quoted parts of an annotation, such as `dict[str, "FeatureInfo"]`."""
    for child in ast.walk(annotation) if annotation is not None else ():
        if isinstance(child, ast.Constant) and isinstance(child.value, str):
            try:
                yield from used_names(ast.parse(child.value, mode="eval"))
            except SyntaxError:
                continue  # a string in Literal
