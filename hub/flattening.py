"""Modules of a package as the files of one flat folder, which is how transformers reads the code of a repository.

Relative imports become imports of siblings, and transformers' own reading of the result is checked.
"""

import ast
import re
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec, resolve_name
from pathlib import Path

# How transformers finds the files that a module needs; it reads docstrings too.
LOADER_IMPORT = re.compile(r"^\s*(?:from\s+\.(\S+)\s+import|import\s+\.(\S+)\s*$)", re.MULTILINE)


def flatten(modules: Iterable[str]) -> dict[str, str]:
    """File name -> source of these modules and of all that they import from their package, for one flat folder."""
    waiting, origins, files = list(modules), {}, {}
    while waiting:
        module = waiting.pop()
        file = f"{module.rpartition('.')[2]}.py"
        if origins.setdefault(file, module) != module:
            raise ValueError(
                f"{origins[file]} and {module} would both become {file} in one flat folder. Rename one of them."
            )
        if file not in files:
            files[file], imported = flatten_module(module)
            waiting += imported
    return dict(sorted(files.items()))


@cache
def flatten_module(module: str) -> tuple[str, list[str]]:
    """The module's source with `from ..folder.module import` as `from .module import`, and the modules it imports.

    Read once in a process, so that all saves of a run hold the same code, whatever happens to the files meanwhile.
    """
    source = module_source(module)
    tree = ast.parse(source)
    statements = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.level]
    imported = [imported_module(module, node) for node in statements]
    lines = source.splitlines(keepends=True)
    rewritten = []
    for node, target in zip(reversed(statements), reversed(imported), strict=True):
        text = "".join(lines[node.lineno - 1 : node.end_lineno])
        rewritten.append(re.sub(r"^from\s+\S+\s+import", f"from .{target.rpartition('.')[2]} import", text))
        del lines[node.lineno - 1 : node.end_lineno]
    if statements:  # all in one place, in the order that import sorting asks for
        lines[statements[0].lineno - 1 : statements[0].lineno - 1] = sorted(rewritten, key=str.lower)
    flat = "".join(lines)
    check_loader_finds(flat, module, {target.rpartition(".")[2] for target in imported})
    return flat, imported


def module_source(module: str) -> str:
    """The text of the file."""
    spec = find_spec(module)
    if spec is None:
        raise ValueError(f"there is no module {module} to export. Check the import that names it.")
    if spec.submodule_search_locations is not None:
        raise ValueError(
            f"{module} is a folder, which a flat repository does not have. Import from the file that defines the name."
        )
    return Path(spec.origin).read_text(encoding="utf-8")


def imported_module(module: str, node: ast.ImportFrom) -> str:
    """The full name of the module that a relative import reads."""
    if node.module is None:
        raise ValueError(
            f"{module}, line {node.lineno}: transformers does not find `from . import name`. "
            "Write `from .name import ...`."
        )
    return resolve_name("." * node.level + node.module, module.rpartition(".")[0])


def check_loader_finds(source: str, module: str, expected: set[str]) -> None:
    """Raises unless transformers' reading of a flat file finds its relative imports, and nothing else."""
    found = {name for match in LOADER_IMPORT.findall(source) for name in match if name}
    if found != expected:
        raise ValueError(
            f"{module}: transformers would look for the files {sorted(found)}, the imports are {sorted(expected)}. "
            "Keep relative imports at the top of the file, and begin no line of a docstring with `from .`."
        )
    package = module.partition(".")[0]
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
        if any(name.partition(".")[0] == package for name in names):
            raise ValueError(
                f"{module}, line {node.lineno}: imports {package} by name. Write a relative import."
            )
