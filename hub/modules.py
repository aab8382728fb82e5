"""The package's source files as statements: what each one defines, what it uses, and where imported names come from."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import NamedTuple

DEFINITIONS = (ast.FunctionDef, ast.ClassDef)


class Import(NamedTuple):
    """`from module import name as alias`, or with `name` None `import module as alias`."""

    module: str
    name: str | None
    alias: str | None


@dataclass(frozen=True)
class Statement:
    """A statement at the top level of a module, with the comments above it.

    names: what it binds; a call such as `operator.register_fake(...)` belongs to `operator`.
    uses: every name that it reads, including those in quoted annotations.
    gap: blank lines above it.
    meaning: equal for statements that do the same; a class or function is equal to none.
    """

    names: frozenset[str]
    uses: frozenset[str]
    text: str
    gap: int
    meaning: str | None = None
    is_import: bool = False


@dataclass(frozen=True)
class Module:
    """siblings: imported name -> the module of the package that defines it. packages: imported name -> its import."""

    name: str
    docstring: str
    statements: tuple[Statement, ...]
    siblings: dict[str, str]
    packages: dict[str, Import]


@cache
def read_module(name: str) -> Module:
    """Reads a module's file, once in a process: all saves of a run hold the same code, whatever happens to the files.

    Raises ValueError for what cannot be moved into another file.
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
    """The text of the file."""
    spec = find_spec(name)
    if spec is None:
        raise ValueError(f"there is no module {name} to export. Check the import that names it.")
    if spec.submodule_search_locations is not None:
        raise ValueError(f"{name} is a folder. Import from the file that defines the name.")
    return Path(spec.origin).read_text(encoding="utf-8")


def imported_module(name: str, node: ast.ImportFrom, alias: ast.alias) -> str:
    """The full name of the module that a relative import reads."""
    where = f"{name}, line {node.lineno}"
    if node.module is None:
        raise ValueError(f"{where}: `from . import name` cannot be exported. Write `from .name import ...`.")
    if alias.asname or alias.name == "*":
        raise ValueError(f"{where}: import the names of this package under their own names.")
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
    """What a top-level statement defines; of a guarded import, what it imports; of a call, whose method it calls."""
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
    """`operator` of `operator.register_fake(...)`; nothing for `function(...)`."""
    if isinstance(call.func, ast.Attribute):
        yield ast.unparse(call.func).partition(".")[0]


def used_names(node: ast.AST) -> Iterator[str]:
    for child in ast.walk(node):
        if isinstance(child, ast.Name):
            yield child.id
        for annotation in (getattr(child, "annotation", None), getattr(child, "returns", None)):
            yield from quoted_names(annotation)


def quoted_names(annotation: ast.expr | None) -> Iterator[str]:
    """The names in the quoted parts of an annotation, such as `dict[str, "EncoderFacts"]`."""
    for child in ast.walk(annotation) if annotation is not None else ():
        if isinstance(child, ast.Constant) and isinstance(child.value, str):
            try:
                yield from used_names(ast.parse(child.value, mode="eval"))
            except SyntaxError:
                continue  # the text of a Literal
