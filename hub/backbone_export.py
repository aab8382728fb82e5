"""Exports the code of a backbone that a user registered with AutoBackbone, together with a model built on it.

The user's module is saved as `custom_backbones.py`, with its registration at the end. Both the configuration
file and the model file import it, because transformers may load each with its own copy of the classes.
"""

import ast
import inspect
import logging
import sys
from functools import cache
from pathlib import Path
from typing import Any

from transformers import AutoBackbone
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

logger = logging.getLogger(__name__)

EXPORTED_FILE = "custom_backbones.py"
MAY_REQUIRE = {"huggingface_hub", "numpy", "torch", "torchvision", "transformers"} | sys.stdlib_module_names


def custom_backbone_file(settings: dict[str, Any], folder: Path) -> dict[str, str]:
    """Returns file name -> source of the configured backbone if a user registered it, else an empty dict.

    If the backbone is not registered in this process, a file that is already in the folder is kept.
    """
    model_type = (settings.get("backbone_config") or {}).get("model_type")
    if model_type and model_type not in CONFIG_MAPPING and (folder / EXPORTED_FILE).is_file():
        return {EXPORTED_FILE: (folder / EXPORTED_FILE).read_text(encoding="utf-8")}
    config_class = CONFIG_MAPPING[model_type] if model_type in CONFIG_MAPPING else None  # noqa: SIM401 - it is lazy
    backbone_class = AutoBackbone._model_mapping.get(config_class, None) if config_class else None
    package = __name__.partition(".")[0]
    if backbone_class is None or backbone_class.__module__.partition(".")[0] in ("transformers", package):
        return {}
    obstacle, source = own_source(config_class, backbone_class)
    if obstacle:
        warn_once(
            f"the backbone {backbone_class.__name__} is not saved with the model: {obstacle}. "
            "It must be imported and registered before the model is loaded. To save it, put "
            f"{config_class.__name__} and {backbone_class.__name__} into one file of their own that imports only "
            "torch and transformers."
        )
        return {}
    registration = (
        "\n\nfrom transformers import AutoBackbone, AutoConfig  # noqa: E402\n\n"
        f'AutoConfig.register("{model_type}", {config_class.__name__}, exist_ok=True)\n'
        f"AutoBackbone.register({config_class.__name__}, {backbone_class.__name__}, exist_ok=True)\n"
        f'REGISTERED_HERE = ("{model_type}",)\n'
    )
    return {EXPORTED_FILE: source.rstrip() + registration}


def own_source(config_class: type, backbone_class: type) -> tuple[str, str]:
    """Returns (obstacle to an export, "") or ("", the module's source without its registrations)."""
    modules = {config_class.__module__, backbone_class.__module__}
    if len(modules) > 1:
        return f"its classes are in two files, {' and '.join(sorted(modules))}", ""
    module = modules.pop()
    if module == "__main__":
        return "it is defined in the running script or notebook", ""
    try:
        source = inspect.getsource(sys.modules[module])
    except (OSError, TypeError):
        return f"the source of {module} cannot be read", ""
    tree = ast.parse(source)
    foreign = sorted(foreign_imports(tree))
    if foreign:
        return f"{module} imports {', '.join(foreign)}", ""
    lines = source.splitlines(keepends=True)
    for node in reversed([node for node in tree.body if is_registration(node)]):
        del lines[node.lineno - 1 : node.end_lineno]
    return "", "".join(lines)


def foreign_imports(tree: ast.Module) -> set[str]:
    """Returns the imports of a module that a repository on the Hub cannot rely on."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or ""))
    return {name for name in names if name.partition(".")[0] not in MAY_REQUIRE}


def is_registration(node: ast.stmt) -> bool:
    """Whether this is a statement `Auto...register(...)`, which raises for a second copy of the classes."""
    if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        return False
    return ast.unparse(node.value.func) in (
        "AutoBackbone.register",
        "AutoConfig.register",
        "AutoModel.register",
    )


@cache
def warn_once(message: str) -> None:
    logger.warning("%s", message)
