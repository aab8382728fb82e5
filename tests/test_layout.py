"""The rules of the repository's layout that a program can check: which way imports point, how they are written, how long code is."""

import ast
import re
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

from cases import each

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("app", "benchmarks", "configuration", "hub", "modeling", "processing", "scripts", "training")
LIBRARY = {"configuration", "modeling", "processing", "hub", "training"}
MAY_IMPORT = {
    "configuration": {"configuration"},
    "modeling": {"modeling", "configuration"},
    "processing": {"processing"},
    "hub": {"hub", "modeling", "processing", "configuration"},
    "training": LIBRARY,
    "app": LIBRARY | {"app"},
    "scripts": LIBRARY | {"app", "scripts", "benchmarks", ""},
    "benchmarks": LIBRARY | {"benchmarks", ""},
    "": LIBRARY | {""},
}
MAY_REQUIRE = {
    "safetensors",
    "torch",
    "torchvision",
    "numpy",
    "PIL",
    "transformers",
    "huggingface_hub",
} | sys.stdlib_module_names
PROCESSORS = (  # what of processing/ is exported starts here
    "processing/image_processing_segmentation.py",
    "processing/image_processing_volume.py",
)
LEVEL_0 = {
    "attention", "windows", "positions", "blocks", "patches", "losses", "loss_operators", "upsampling", "winograd",
}  # fmt: skip
LEVEL_2 = {
    *("pretrained", "pretrained_backbones", "auto_classes", "decoders", "two_scale"),
    *("any_backbone", "backbones", "backbone_building", "backbone_info", "segformer_checkpoints"),
}  # and modeling_*
VAGUE_NAMES = re.compile(r"^(utils?|misc|common|helpers?)$|_(utils?|v\d+)$")
FILE_LINES, CLASS_LINES, FUNCTION_LINES, FORWARD_LINES, FORWARD_BRANCHES = 350, 150, 40, 30, 2
LARGEST_SHARE = 1 / 3  # of all code, in one folder


def python_files(*folders):
    """The Python files below these folders, without those of `tests/`."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def package_files():
    return [*sorted(ROOT.glob("*.py")), *python_files(*PACKAGES)]


def exported_files():
    """The files of which a repository on the Hub may get parts: all of models, and what image processors reach."""
    waiting, reached = [ROOT / name for name in PROCESSORS], set()
    while waiting:
        path = waiting.pop()
        if path not in reached:
            reached.add(path)
            waiting += [MODULES[name] for name in own_imports(path)]
    models = [path for path in python_files("configuration", "modeling") if path.stem != "__init__"]
    return [*models, *sorted(reached)]


def complaints(files, check):
    """What `check` finds in the sources, by file: empty where every file keeps the rule."""
    found = {str(path.relative_to(ROOT)): check(path) for path in files}
    assert found, "the rule was applied to no file"
    return {name: wrong for name, wrong in found.items() if wrong}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(["contextseg", *(parts[:-1] if parts[-1] == "__init__" else parts)])


MODULES = {module_name(path): path for path in package_files()}


def imported_modules(path):
    """Dotted names of the modules that a file imports, those under TYPE_CHECKING too; relative ones are resolved."""
    name = module_name(path)
    here = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = here[: len(here) - node.level + 1] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            inside = [f"{base}.{alias.name}" for alias in node.names if f"{base}.{alias.name}" in MODULES]
            yield from inside or [base]


def own_imports(path):
    return sorted({name for name in imported_modules(path) if name.split(".")[0] == "contextseg"})


def folder_of(module):
    """The folder at the root that holds a module; empty for the root itself."""
    return MODULES[module].relative_to(ROOT).parts[0] if MODULES[module].parent != ROOT else ""


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
    wrong = []
    plain = re.compile(
        r"from (\.|\.\.|\.volumes\.|\.\.(configuration|modeling|processing)\.)[a-z]\w* import [\w(]"
    )
    for number, line in enumerate(source.splitlines(), 1):
        if re.match(r"\s*from\s+\.", line) and not plain.match(line):
            wrong.append(
                f"line {number}: {line.strip()!r} is not 'from .module import Name' at the top level"
            )
    for node in unguarded_imports(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        packages = {name.split(".")[0] for name in names} if not getattr(node, "level", 0) else set()
        wrong += [
            f"line {node.lineno}: an export must not need {package}" for package in packages - MAY_REQUIRE
        ]
    return wrong


def code_lines(node, source_lines):
    """Lines of a function's body without docstring, comments and blank lines."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    lines = source_lines[body[0].lineno - 1 : node.end_lineno] if body else []
    return sum(1 for line in lines if line.strip() and not line.strip().startswith("#"))


def too_long(source):
    lines = source.splitlines()
    wrong = [f"{len(lines)} lines in the file, at most {FILE_LINES}"] if len(lines) > FILE_LINES else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and node.end_lineno - node.lineno >= CLASS_LINES:
            wrong.append(f"class {node.name} is longer than {CLASS_LINES} lines")
        if isinstance(node, ast.FunctionDef):
            limit = FORWARD_LINES if node.name == "forward" else FUNCTION_LINES
            branches = (
                sum(isinstance(inner, ast.If) for inner in ast.walk(node)) if node.name == "forward" else 0
            )
            if code_lines(node, lines) > limit or branches > FORWARD_BRANCHES:
                wrong.append(
                    f"line {node.lineno}: {node.name} has more than {limit} lines or {FORWARD_BRANCHES} branches"
                )
    return wrong


# -- which way imports point


def test_imports_point_down_and_nothing_imports_scripts():
    def upward(path):
        allowed = MAY_IMPORT[folder_of(module_name(path))]
        return [name for name in own_imports(path) if folder_of(name) not in allowed]

    assert complaints(package_files(), upward) == {}


def test_configurations_need_neither_torch_nor_timm():
    may = {"contextseg", "huggingface_hub", "transformers"} | sys.stdlib_module_names

    def foreign(path):
        return sorted({name.split(".")[0] for name in imported_modules(path)} - may)

    assert complaints(python_files("configuration"), foreign) == {}


def test_only_pages_need_gradio():
    users = [
        path for path in package_files() if re.search(r"^\s*(import|from) gradio", path.read_text(), re.M)
    ]
    pages = ["app/page.py", "app/server.py", "hub/space_page.py"]
    assert [path.relative_to(ROOT).as_posix() for path in users] == pages


def test_images_and_masks_do_not_know_data_sets():
    files = [path for path in python_files("processing") if "data" not in path.relative_to(ROOT).parts]
    assert complaints(files, lambda path: [n for n in own_imports(path) if ".processing.data" in n]) == {}


def test_imports_run_in_no_circle():
    """Those under `TYPE_CHECKING` count as well."""
    TopologicalSorter({name: own_imports(path) for name, path in MODULES.items()}).prepare()  # or CycleError


def test_no_import_inside_modeling_points_to_a_higher_level():
    def upward(path):
        stems = [name.split(".")[2] for name in own_imports(path) if ".modeling." in name]
        return [stem for stem in stems if level(stem) > level(path.stem)]

    assert complaints(python_files("modeling"), upward) == {}


def test_only_public_models_know_configurations():
    # Choices by name, and ranges of values: neither knows a configuration.
    checks = {f"contextseg.configuration.{stem}" for stem in ("checked_config", "field_rules")}
    files = [path for path in python_files("modeling") if level(path.stem) < 2 and path.stem != "__init__"]
    wrong = complaints(
        files, lambda path: [n for n in own_imports(path) if ".configuration" in n and n not in checks]
    )
    assert wrong == {}


def test_no_folder_holds_more_than_a_third_of_the_code():
    """A package inside a folder is a folder of its own: it has a line of its own in CONTRIBUTING.md."""
    lines = dict.fromkeys((path.parent for path in python_files(*PACKAGES)), 0)
    for path in python_files(*PACKAGES):
        lines[path.parent] += len(path.read_text().splitlines())
    shares = {folder.name: count / sum(lines.values()) for folder, count in lines.items()}
    assert {folder: share for folder, share in shares.items() if share > LARGEST_SHARE} == {}


# -- how imports are written


def test_imports_are_written_so_that_the_hub_loader_finds_them():
    assert complaints(exported_files(), lambda path: wrong_imports(path.read_text())) == {}


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
    stems = [path.stem for path in exported_files()]
    assert sorted(stems) == sorted(set(stems))


# -- how long code is, and what files are called


def test_files_classes_and_functions_stay_short():
    assert complaints(package_files(), lambda path: too_long(path.read_text())) == {}


def test_long_code_is_found():
    step = "    x = 1\n"
    assert too_long("x = 1\n" * (FILE_LINES + 1)) != []
    assert too_long("def f():\n" + step * (FUNCTION_LINES + 1)) != []
    assert too_long("def f():\n" + step * FUNCTION_LINES) == []
    assert too_long("def forward():\n" + step * (FORWARD_LINES + 1)) != []
    assert too_long("def forward(a):\n" + "    if a:\n        pass\n" * (FORWARD_BRANCHES + 1)) != []


def test_file_names_say_what_is_inside():
    assert [path.name for path in package_files() if VAGUE_NAMES.search(path.stem)] == []


def test_pyproject_lists_every_package():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    packages = {module_name(path) for path in package_files() if path.name == "__init__.py"}
    assert sorted(listed) == sorted(packages)


def test_every_forward_states_shapes_in_its_docstring():
    shape = re.compile(r"\([\w./ *-]+, [^)]+\)")

    def silent(path):
        functions = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)
        ]
        forwards = [node for node in functions if node.name == "forward"]
        return [node.lineno for node in forwards if not shape.search(ast.get_docstring(node) or "")]

    assert complaints(python_files("modeling"), silent) == {}
