"""Bundles the code that classes of the package need into one source file per folder.

transformers reads the code of a repository from flat files. A repository contains `configuration_x.py`,
`modeling_x.py` and `image_processing_x.py`, each with the definitions of that folder that the classes can
reach, in order of dependency. A table of choices keeps only the entry that the model uses; the names of the
others remain, with the value `NotImplemented`, for the error message of `choose`.
"""

import ast
import builtins
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from graphlib import TopologicalSorter

from .modules import Import, Module, Statement, read_module, used_names

# How transformers finds the files that a module needs; it also searches docstrings.
LOADER_IMPORT = re.compile(r"^\s*(?:from\s+\.(\S+)\s+import|import\s+\.(\S+)\s*$)", re.MULTILINE)
LINE_LENGTH = 110


def bundle(
    entries: Iterable[type | Callable],
    kept: Mapping[str, str] | None = None,
    extra_imports: Sequence[Import] = (),
) -> dict[str, str]:
    """Bundles classes, functions and everything they use into one file for each folder of the package.

    Args:
        entries: Classes and functions; the first one of a folder determines the name of the file.
        kept: Name of a table of choices -> key of the entry to keep.
        extra_imports: Imports of sibling files to add to every file.

    Returns:
        File name -> source.

    Raises:
        ValueError: If two modules of a folder define the same name differently or import each other.
    """
    return bundle_names([(entry.__module__, entry.__name__) for entry in entries], kept, extra_imports)


def bundle_names(
    entries: Sequence[tuple[str, str]],
    kept: Mapping[str, str] | None = None,
    extra_imports: Sequence[Import] = (),
) -> dict[str, str]:
    """`bundle` of (module, name) pairs, which need not be importable here."""
    reached = reachable(entries, kept or {})
    titles: dict[str, str] = {}
    for module in [*(module for module, _ in entries), *sorted(reached)]:
        titles.setdefault(folder_of(module), module)
    files = {}
    for folder, title in sorted(titles.items()):
        parts = {module: reached[module] for module in sorted(reached) if folder_of(module) == folder}
        files[f"{stem_of(title)}.py"] = write_file(title, parts, titles, extra_imports)
    return files


def folder_of(module: str) -> str:
    """The folder of the package that a module lies in, in a folder of its own or not: one file holds both."""
    return ".".join(module.split(".")[:2])


def stem_of(module: str) -> str:
    return module.rpartition(".")[2]


def reachable(entries: Iterable[tuple[str, str]], kept: Mapping[str, str]) -> dict[str, dict[int, Statement]]:
    """Returns module -> its statements, by position, that these (module, name) pairs need."""
    reached: dict[str, dict[int, Statement]] = defaultdict(dict)
    waiting, seen = list(entries), set()
    while waiting:
        name, wanted = pair = waiting.pop()
        if pair in seen:
            continue
        seen.add(pair)
        module = read_module(name)
        found = [index for index, statement in enumerate(module.statements) if wanted in statement.names]
        for index in found:
            statement = reached[name][index] = narrowed(module.statements[index], kept)
            waiting += [(name, used) for used in statement.uses]
        if not found and wanted in module.siblings:
            waiting.append((module.siblings[wanted], wanted))
    return {module: dict(sorted(statements.items())) for module, statements in reached.items()}


def narrowed(statement: Statement, kept: Mapping[str, str]) -> Statement:
    """Reduces a table of choices to the entry that is used; returns any other statement unchanged."""
    if not statement.names & kept.keys():
        return statement
    node = ast.parse(statement.text).body[0]
    table = getattr(node, "value", None)
    if not isinstance(table, ast.Dict) or not all(isinstance(key, ast.Constant) for key in table.keys):
        return statement
    (name,) = statement.names
    lines = statement.text.splitlines(keepends=True)
    head = "".join(lines[: table.lineno - 1]) + lines[table.lineno - 1][: table.col_offset]
    entries, uses = [], {"NotImplemented", *used_names(getattr(node, "annotation", ast.Pass()))}
    for key, value in zip(table.keys, table.values, strict=True):
        if key.value == kept[name]:
            rest = lines[value.end_lineno - 1][value.end_col_offset :]
            comment = rest.rstrip("\n") if re.fullmatch(r",\s*#.*\n", rest) else ","
            entries.append(f'    "{key.value}": {ast.get_source_segment(statement.text, value)}{comment}\n')
            uses |= {*used_names(value)}
        else:
            entries.append(f'    "{key.value}": NotImplemented,\n')
    return replace(statement, text=f"{head}{{\n{''.join(entries)}}}\n", uses=frozenset(uses))


# -- one file ----------------------------------------------------------------------------------------------------------


def write_file(
    title: str,
    parts: Mapping[str, Mapping[int, Statement]],
    titles: Mapping[str, str],
    extra_imports: Sequence[Import],
) -> str:
    """Returns the source of one file: parts of a folder's modules below the docstring of module `title`."""
    modules = {name: read_module(name) for name in parts}
    imports = set(extra_imports)
    for name, statements in parts.items():
        uses = frozenset().union(*(statement.uses for statement in statements.values()))
        imports |= imports_of(modules[name], statements, uses, titles)
    statements = without_twins(stem_of(title), in_order(modules), parts, imports)
    guarded = [part for found in statements.values() for part in found if part.is_import]
    docstring = read_module(title).docstring
    text = f'"""{docstring}\n"""\n' if "\n" in docstring else f'"""{docstring}"""\n'
    text += written_imports(imports) + "".join(f"\n{part.text}" for part in guarded)
    for index, (name, found) in enumerate(statements.items()):
        if len(parts) > 1:
            text += "\n" * (2 if index else 1) + written_heading(modules[name], with_docstring=name != title)
        text += written_body([part for part in found if not part.is_import])
    check_loader_finds(text, title, {found.module[1:] for found in imports if found.module.startswith(".")})
    return text


def imports_of(
    module: Module, statements: Mapping[int, Statement], uses: frozenset[str], titles: Mapping[str, str]
) -> set[Import]:
    """Returns the imports of packages and of other folders' files that these statements of a module need."""
    imports = {found for name, found in module.packages.items() if name in uses}
    for name, source in module.siblings.items():
        if name in uses and folder_of(source) != folder_of(module.name):
            imports.add(Import(f".{stem_of(titles[folder_of(source)])}", name, None))
    own = frozenset().union(*(statement.names for statement in statements.values()))
    return {found for found in imports if (found.alias or found.name) not in own}


def in_order(modules: Mapping[str, Module]) -> list[str]:
    """Sorts modules after those that they import. Raises ValueError (CycleError) if imports are circular."""
    graph = {
        name: sorted({source for source in module.siblings.values() if source in modules})
        for name, module in modules.items()
    }
    return list(TopologicalSorter(graph).static_order())


def without_twins(
    file: str, order: Sequence[str], parts: Mapping[str, Mapping[int, Statement]], imports: Iterable[Import]
) -> dict[str, list[Statement]]:
    """Returns module -> its statements, without duplicates of statements in other modules, such as `logger`.

    Raises ValueError if a name would have two meanings.
    """
    owners: dict[str, object] = dict.fromkeys(dir(builtins), "Python's own")
    meanings: dict[str, set[str | None]] = defaultdict(set)
    for found in imports:
        check_unique(file, owners, found.alias or found.name or found.module.partition(".")[0], found)
    chosen: dict[str, list[Statement]] = {name: [] for name in order}
    for name in order:
        for statement in parts[name].values():
            is_twin = statement.meaning and all(
                owners.get(bound, name) != name and statement.meaning in meanings[bound]
                for bound in statement.names
            )
            if is_twin:
                continue
            for bound in statement.names:
                check_unique(file, owners, bound, name)
                meanings[bound].add(statement.meaning)
            chosen[name].append(statement)
    return chosen


def check_unique(file: str, owners: dict[str, object], name: str, owner: object) -> None:
    if owners.setdefault(name, owner) != owner:
        raise ValueError(
            f"{file}.py would have two meanings of {name}: {owners[name]} and {owner}. Rename one of them."
        )


def written_heading(module: Module, with_docstring: bool) -> str:
    """Returns the file name of a part, and its docstring if wanted, as comments."""
    title = f"-- {folder_of(module.name).rpartition('.')[2]}/{stem_of(module.name)}.py "
    lines = module.docstring.splitlines() if with_docstring else []
    return "".join(f"# {line}".rstrip() + "\n" for line in [title.ljust(LINE_LENGTH - 2, "-"), *lines])


def written_body(statements: Sequence[Statement]) -> str:
    """Joins statements, with two blank lines around classes and functions."""
    text, after_definition = "", False
    for statement in statements:
        is_definition = statement.meaning is None
        blank = 2 if is_definition or after_definition else min(statement.gap, 1)
        text += "\n" * (blank if text else max(blank, 1)) + statement.text
        after_definition = is_definition
    return text


def written_imports(imports: Iterable[Import]) -> str:
    """Returns sorted import statements: standard library, packages, sibling files."""
    sections: list[list[str]] = [[], [], []]
    members: dict[str, list[str]] = defaultdict(list)
    plain = []
    for found in imports:
        if found.name is None:
            plain.append(
                (found.module, f"import {found.module}" + (f" as {found.alias}" if found.alias else ""))
            )
        elif found.alias is None:
            members[found.module].append(found.name)
    for module, line in sorted(plain, key=lambda pair: pair[0].lower()):
        sections[section_of(module)].append(line)
    renamed = [found for found in imports if found.name and found.alias]
    for module in sorted({*members, *(found.module for found in renamed)}, key=str.lower):
        lines = [from_import(module, members[module])] if members[module] else []
        lines += sorted(
            f"from {module} import {found.name} as {found.alias}"
            for found in renamed
            if found.module == module
        )
        sections[section_of(module)] += lines
    return "".join("\n" + "\n".join(lines) + "\n" for lines in sections if lines)


def section_of(module: str) -> int:
    return 2 if module.startswith(".") else 0 if module.partition(".")[0] in sys.stdlib_module_names else 1


def from_import(module: str, names: Iterable[str]) -> str:
    """Returns a from-import on one line, or one line per name if too long; constants, classes, functions."""
    names = sorted(names, key=lambda name: (2 if name[0].islower() else 0 if name.isupper() else 1, name))
    line = f"from {module} import {', '.join(names)}"
    return (
        line
        if len(line) <= LINE_LENGTH
        else f"from {module} import (\n    {f',{chr(10)}    '.join(names)},\n)"
    )


def check_loader_finds(source: str, module: str, expected: set[str]) -> None:
    """Raises ValueError unless the loader of transformers finds exactly the relative imports of a file."""
    found = {name for match in LOADER_IMPORT.findall(source) for name in match if name}
    if found != expected:
        raise ValueError(
            f"{module}: transformers would look for the files {sorted(found)}, but the imports are "
            f"{sorted(expected)}. Do not begin a line of a docstring with `from .`."
        )
