"""The rules of the repository's layout that a program can check: which way imports point, how they are written, how long code is."""

import ast
import re
import sys
import tomllib
from pathlib import Path

from cases import each

ROOT = Path(__file__).resolve().parents[1]
EXPORTED = ("configuration", "modeling", "processing")  # folders that the Hub export flattens into one
MAY_IMPORT = {
    "configuration": {"configuration"},
    "modeling": {"modeling", "configuration"},
    "processing": {"processing"},
}
MAY_REQUIRE = {
    "torch",
    "torchvision",
    "numpy",
    "PIL",
    "transformers",
    "huggingface_hub",
} | sys.stdlib_module_names
NEVER_EXPORTED = {"segmentation_metric"}  # needs `evaluate`, and no model or processor needs it
LEVEL_0 = {"attention", "windows", "positions", "blocks", "patches", "losses", "loss_operators", "upsampling"}
LEVEL_2 = {"pretrained", "auto_classes", "backbones", "pretrained_backbones"}  # and modeling_*
VAGUE_NAMES = re.compile(r"^(utils?|misc|common|helpers?)$|_(utils?|v\d+)$")
FILE_LINES, CLASS_LINES, FUNCTION_LINES, FORWARD_LINES, FORWARD_BRANCHES = 350, 150, 40, 30, 2


def python_files(*folders):
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def named(paths):
    return each("path", {str(path.relative_to(ROOT)): path for path in paths})


each_exported_file = named(
    [path for path in python_files(*EXPORTED) if path.stem not in {"__init__", *NEVER_EXPORTED}]
)
each_package_file = named([*sorted(ROOT.glob("*.py")), *python_files(*EXPORTED, "hub", "scripts")])


def imported_modules(source, module):
    """Dotted names of the modules that a source file imports; relative ones are resolved from its own name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: -node.level] if node.level else []
            yield ".".join([*parents, *filter(None, [node.module])])


def module_name(path):
    return ".".join(["contextseg", *path.relative_to(ROOT).with_suffix("").parts])


def level(stem):
    return 0 if stem in LEVEL_0 else 2 if stem in LEVEL_2 or stem.startswith("modeling_") else 1


def is_guard(node):
    """`try: ... except ImportError` or `if is_..._available():`, where the Hub's loader excuses a missing package."""
    if isinstance(node, ast.Try):
        return any(
            "ImportError" in ast.unparse(handler.type or ast.Constant("")) for handler in node.handlers
        )
    return isinstance(node, ast.If) and re.search(r"is_\w+_available\(\)", ast.unparse(node.test)) is not None


def unguarded_imports(node):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not is_guard(child):
            yield from unguarded_imports(child)


def wrong_imports(source):
    """What the Hub's loader would stumble over: it finds files by a regular expression, and every package outside a guard."""
    complaints = []
    plain = re.compile(r"from (\.|\.\.(configuration|modeling|processing)\.)[a-z]\w* import [\w(]")
    for number, line in enumerate(source.splitlines(), 1):
        if re.match(r"\s*from\s+\.", line) and not plain.match(line):
            complaints.append(
                f"line {number}: {line.strip()!r} is not 'from .module import Name' at the top level"
            )
    for node in unguarded_imports(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        packages = {name.split(".")[0] for name in names} if not getattr(node, "level", 0) else set()
        complaints += [
            f"line {node.lineno}: {package} is no package that an export may need"
            for package in packages - MAY_REQUIRE
        ]
    return complaints


def code_lines(node, source_lines):
    """Lines of a function's body without docstring, comments and blank lines."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    lines = source_lines[body[0].lineno - 1 : node.end_lineno] if body else []
    return sum(1 for line in lines if line.strip() and not line.strip().startswith("#"))


def too_long(source):
    lines = source.splitlines()
    complaints = [f"{len(lines)} lines in the file, at most {FILE_LINES}"] if len(lines) > FILE_LINES else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and node.end_lineno - node.lineno >= CLASS_LINES:
            complaints.append(f"class {node.name} is longer than {CLASS_LINES} lines")
        if isinstance(node, ast.FunctionDef):
            limit = FORWARD_LINES if node.name == "forward" else FUNCTION_LINES
            branches = (
                sum(isinstance(inner, ast.If) for inner in ast.walk(node)) if node.name == "forward" else 0
            )
            if code_lines(node, lines) > limit or branches > FORWARD_BRANCHES:
                complaints.append(
                    f"line {node.lineno}: {node.name} has more than {limit} lines or {FORWARD_BRANCHES} branches"
                )
    return complaints


@each_exported_file
def test_exported_folders_import_only_what_the_arrows_allow(path):
    allowed = tuple(f"contextseg.{folder}." for folder in MAY_IMPORT[path.relative_to(ROOT).parts[0]])
    ours = [
        name
        for name in imported_modules(path.read_text(), module_name(path))
        if name.startswith("contextseg")
    ]
    assert [name for name in ours if not name.startswith(allowed)] == []


@named(python_files("modeling"))
def test_no_import_inside_modeling_points_to_a_higher_level(path):
    stems = [
        name.split(".")[2]
        for name in imported_modules(path.read_text(), module_name(path))
        if ".modeling." in name
    ]
    assert [stem for stem in stems if level(stem) > level(path.stem)] == []


@named([path for path in python_files("modeling") if level(path.stem) < 2])
def test_only_public_models_know_configurations(path):
    names = imported_modules(path.read_text(), module_name(path))
    checks = "contextseg.configuration.options"  # choosing by name, which knows no configuration
    assert [name for name in names if ".configuration" in name and name != checks] == []


@named([*ROOT.glob("*.py"), *python_files(*EXPORTED, "hub")])
def test_nothing_imports_scripts_or_tests(path):
    for name in imported_modules(path.read_text(), module_name(path)):
        assert not name.startswith(("contextseg.scripts", "contextseg.tests", "tests"))


@each_exported_file
def test_imports_are_written_so_that_the_hub_loader_finds_them(path):
    assert wrong_imports(path.read_text()) == []


@each(
    "source",
    [
        "from . import windows",
        "from .windows import (\n    a,\n)\ndef f():\n    from .blocks import Mlp",
        '"""An example:\n\n    from .windows import a\n"""',
        "from ..scripts.train import main",
        "def f():\n    import scipy",
        "try:\n    import timm\nexcept ValueError:\n    timm = None",
    ],
)
def test_an_import_that_the_hub_loader_misreads_is_found(source):
    assert wrong_imports(source) != []


def test_an_optional_package_may_be_imported_under_a_guard():
    assert wrong_imports("try:\n    import timm\nexcept ImportError:\n    timm = None") == []
    assert wrong_imports("if is_timm_available():\n    import timm") == []


def test_exported_file_names_are_unique_across_folders():
    stems = [path.stem for path in python_files(*EXPORTED) if path.name != "__init__.py"]
    assert sorted(stems) == sorted(set(stems))


@each_package_file
def test_files_classes_and_functions_stay_short(path):
    assert too_long(path.read_text()) == []


def test_long_code_is_found():
    step = "    x = 1\n"
    assert too_long("x = 1\n" * (FILE_LINES + 1)) != []
    assert too_long("def f():\n" + step * (FUNCTION_LINES + 1)) != []
    assert too_long("def f():\n" + step * FUNCTION_LINES) == []
    assert too_long("def forward():\n" + step * (FORWARD_LINES + 1)) != []
    assert too_long("def forward(a):\n" + "    if a:\n        pass\n" * (FORWARD_BRANCHES + 1)) != []


@each_package_file
def test_file_names_say_what_is_inside(path):
    assert not VAGUE_NAMES.search(path.stem)


def test_pyproject_lists_every_package():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = [
        ROOT,
        *(path.parent for path in python_files(*EXPORTED, "hub", "scripts") if path.name == "__init__.py"),
    ]
    assert sorted(listed) == sorted(
        ".".join(["contextseg", *folder.relative_to(ROOT).parts]) for folder in folders
    )


@named(python_files("modeling"))
def test_every_forward_states_shapes_in_its_docstring(path):
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    forwards = [node for node in functions if node.name == "forward"]
    shape = re.compile(r"\([\w./ *-]+, [^)]+\)")
    assert [node.lineno for node in forwards if not shape.search(ast.get_docstring(node) or "")] == []
