"""What travels with a model: of a package of a few lines what some classes need, one file a folder; and of this package."""

import pytest

from contextseg import SegDeformerConfig
from contextseg.hub.bundling import bundle
from contextseg.hub.repository_code import TABLES, choices
from contextseg.modeling.auto_classes import MODELS


@pytest.fixture
def package(tmp_path, monkeypatch, request):
    """Writes a package from file name -> source, and gives the files of its class X in `module`."""
    name = f"bundled_{abs(hash(request.node.name))}"
    monkeypatch.syspath_prepend(tmp_path)

    def write(module, kept=None, **sources):
        for file, source in sources.items():
            path = tmp_path.joinpath(name, *file.split("__")).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            for folder in (path.parent, tmp_path / name):
                (folder / "__init__.py").touch()
            path.write_text(source.replace("PACKAGE", name))
        entry = type(
            "X", (), {"__module__": f"{name}.{module}"}
        )  # as if imported: some of these packages cannot be
        return bundle([entry], kept)

    return write


def test_one_file_a_folder_holds_what_the_class_reaches_in_order_of_dependence(package):
    model = (
        '"""A model."""\n\nfrom math import prod, sqrt\n\nfrom ..b.sizes import SIZE\nfrom .parts import A\n\n'
        "UNUSED = prod([])\n\n\nclass X(A):\n    size = sqrt(SIZE)\n\n\ndef unused():\n    pass\n"
    )
    flat = package(
        "a.model",
        a__model=model,
        a__parts='"""Parts."""\n\nfrom .far import Far\n\n\nclass A:\n    pass\n\n\nclass B(Far):\n    pass\n',
        a__far="class Far:\n    pass\n",
        b__sizes='"""Sizes."""\n\n# in pixels\nSIZE = 4\nOTHER = 5\n',
    )
    parts, model_part = ("# " + f"-- a/{name}.py ".ljust(108, "-") for name in ("parts", "model"))
    assert flat == {
        "model.py": f'"""A model."""\n\nfrom math import sqrt\n\nfrom .sizes import SIZE\n\n{parts}\n# Parts.\n\n\n'
        f"class A:\n    pass\n\n\n{model_part}\n\n\nclass X(A):\n    size = sqrt(SIZE)\n",
        "sizes.py": '"""Sizes."""\n\n# in pixels\nSIZE = 4\n',
    }


def test_of_a_table_of_choices_one_entry_keeps_what_it_needs(package):
    table = "TABLE: dict[str, type] = {\n    'a': lambda: A,\n    'b': B,  # a note\n}\n"
    classes = "class A:\n    pass\n\n\nclass B:\n    pass\n\n\n"
    source = f"{classes}{table}\n\nclass X:\n    table = TABLE\n"
    flat = package("a.one", {"TABLE": "b"}, a__one=source)["one.py"]
    assert 'TABLE: dict[str, type] = {\n    "a": NotImplemented,\n    "b": B,  # a note\n}\n' in flat
    assert "class B" in flat
    assert "class A" not in flat


def test_quoted_annotations_guarded_imports_and_calls_on_a_name_come_along(package):
    source = (
        "try:\n    import timm\nexcept ImportError:\n    timm = None\n\n\nclass Facts:\n    pass\n\n\n"
        "class X:\n    def f(self) -> 'list[Facts]':\n        return timm\n\n\nX.register(1)\nFacts.register(2)\n"
    )
    flat = package("a.one", a__one=source)["one.py"]
    assert [line for line in source.splitlines() if line.strip() and line not in flat.splitlines()] == []


def test_what_two_modules_say_alike_is_said_once(package):
    logger = "import logging\n\nlogger = logging.getLogger(__name__)\n\n\n"
    one = f"{logger[:15]}from .two import Y\n{logger[15:]}class X(Y):\n    log = logger\n"
    flat = package("a.one", a__one=one, a__two=f"{logger}class Y:\n    log = logger\n")["one.py"]
    assert flat.count("getLogger") == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("from . import two\n", "Write `from .name import ...`"),
        ("from ..b import Y\n", "Import from the file"),
        ("from .gone import Y\n", "there is no module"),
        ("from .two import Y as Z\n", "Import them by name"),
        ("from PACKAGE.a.two import Y\n", "Write a relative import"),
        ("import PACKAGE.a.two\n", "Write a relative import"),
        ("def f():\n    from .two import Y\n    return Y\n", "top level of the file"),
        ("for Y in range(3):\n    pass\n", "only definitions and imports"),
        ('"""Example:\n\nfrom .two import Y\n"""\nY = 1\n', "do not begin a line of a docstring"),
        ("from .two import Z\n\nY = 2\n", "two meanings of Y"),
        ("from torch import Y\n\nfrom .two import Z\n", "two meanings of Y"),
        ("Y = 1\n\n\ndef max():\n    pass\n", "two meanings of max: Python's own"),
        ("from .circle import Y\n", "cycle"),
    ],
)
def test_what_cannot_move_into_one_file_is_refused(package, source, message):
    used = source + "\n\nclass X:\n    y = Y, Z, max\n"
    circle = "from .one import X\n\nY = X\n"
    with pytest.raises(ValueError, match=f"(?i){message}"):
        package("a.one", a__one=used, a__two="Y = 1\nZ = Y\n", a__circle=circle, b__two="")


def test_all_models_together_fit_into_one_file_a_folder():
    """So whatever a model is built of, no two of its parts share a name."""
    classes = [cls for config, models in MODELS.items() for cls in (config, *models.values())]
    assert len(bundle(classes)) == 2


def test_every_table_of_choices_can_be_narrowed():
    """A renamed one would travel whole."""
    classes = [cls for config, models in MODELS.items() for cls in (config, *models.values())]
    tables = {*TABLES, *choices({}, SegDeformerConfig)}
    assert ": NotImplemented," not in "".join(bundle(classes).values())
    for name in tables:
        narrow = "".join(bundle(classes, {name: ""}).values())
        table = narrow[narrow.rindex(f"\n{name}") :]
        assert ": NotImplemented," in table[: table.index("}")], name
