"""What `import contextseg` sets up: Auto classes of transformers know our types, and saves include code.

All of it is lazy. Our `model_type`s are registered when transformers' AutoConfig is imported, and our classes
are imported when one of them is looked up, or a configuration or model is imported. So `import contextseg` does not
import torch, and `--help` of the commands is fast.
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

PACKAGE = __name__.rpartition(".")[0]
CONFIGURATIONS = {
    "caswit": "CaswitConfig",
    "cswin": "CswinConfig",
    "glam": "GlamConfig",
    "glam_swin": "GlamSwinConfig",
    "maformer": "MaformerConfig",
    "mask_rcnn": "MaskRcnnConfig",
    "nnformer": "NnFormerConfig",
    "relay": "RelayConfig",
    "segdeformer": "SegDeformerConfig",
}


def register() -> None:
    """Calls each function of `AFTER_IMPORT` right after one of its modules is imported, or now if one already is."""
    for modules, function in AFTER_IMPORT.items():
        if any(re.fullmatch(modules, name) for name in sys.modules):
            function()
        else:
            sys.meta_path.insert(0, AfterImport(modules, function))


class AfterImport(MetaPathFinder):
    """Calls a function once, right after the first import of one of several modules, and of those that it imports.

    Args:
        modules: Regular expression of the names of the modules.
        function: The function.
    """

    def __init__(self, modules: str, function: Callable[[], None]) -> None:
        self.modules, self.function = re.compile(modules), function
        self.depth = 0  # how many of the modules are being imported, each by the one before
        self.is_asking_others = False

    def find_spec(self, name: str, _path: Any = None, _target: ModuleType | None = None) -> ModuleSpec | None:
        """Returns the module's own spec, with the call added to its loader; None for other modules."""
        if self.is_asking_others or not self.modules.fullmatch(name):
            return None
        self.is_asking_others = True
        try:
            spec = find_spec(name)
        finally:
            self.is_asking_others = False
        execute = spec.loader.exec_module

        def execute_and_call(module: ModuleType) -> None:
            self.depth += 1
            try:
                execute(module)
            finally:
                self.depth -= 1
            if self.depth == 0 and self in sys.meta_path:
                sys.meta_path.remove(self)
                self.function()

        spec.loader.exec_module = execute_and_call
        return spec


class ConfigurationOnDemand:
    """Placeholder for a configuration class in AutoConfig, which imports the class on first use."""

    def __init__(self, name: str) -> None:
        self._name = name

    def _load(self) -> type:
        from .configuration import auto_configurations  # importing it registers the classes, see AFTER_IMPORT

        return getattr(auto_configurations, self._name)

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._load(), attribute)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._load()(*args, **options)


def processors_of_images() -> dict[str, type]:
    from .processing.image_processing_segmentation import IMAGE_PROCESSORS

    return IMAGE_PROCESSORS


def processors_of_volumes() -> dict[str, type]:
    from .processing.image_processing_volume import VOLUME_PROCESSORS

    return VOLUME_PROCESSORS


class ImageProcessorsOnDemand(Mapping):
    """Image processor classes by backend for AutoImageProcessor, imported when it looks for one."""

    def __init__(self, load: Callable[[], dict[str, type]]) -> None:
        self._load = load

    def __getitem__(self, backend: str) -> type:
        return self._load()[backend]

    def __iter__(self) -> Iterator[str]:
        return iter(self._load())

    def __len__(self) -> int:
        return len(self._load())


# When these two functions are called, transformers may be half imported: they must not import anything.


def announce_configurations() -> None:
    """Registers our configurations with AutoConfig by their `model_type`."""
    auto = sys.modules["transformers.models.auto.configuration_auto"]
    for model_type, name in CONFIGURATIONS.items():
        auto.CONFIG_MAPPING.register(model_type, ConfigurationOnDemand(name), exist_ok=True)


def announce_image_processors() -> None:
    """Registers our image processors with AutoImageProcessor by their class name."""
    auto = sys.modules["transformers.models.auto.image_processing_auto"]
    for load in (processors_of_images, processors_of_volumes):
        auto.IMAGE_PROCESSOR_MAPPING.register(load, ImageProcessorsOnDemand(load), exist_ok=True)


def register_models() -> None:
    """Registers our models and image processors with the Auto classes by their configuration class."""
    from .modeling.auto_classes import register_auto_classes

    register_auto_classes(processors_of_images(), processors_of_volumes())


def save(saved: Any, write: Callable[..., Any], folder: Any, **options: Any) -> list[str] | None:
    from .hub.repositories import save

    return save(saved, write, folder, **options)


def push(saved: Any, repo_id: str, **options: Any) -> Any:
    from .hub.repositories import push

    return push(saved, repo_id, **options)


def save_models_with_code() -> None:
    from .modeling.pretrained import ContextsegPreTrainedModel, HubHooks

    ContextsegPreTrainedModel.hub_hooks = HubHooks(save, push)


def save_image_processors_with_code() -> None:
    from .processing.saving import HubHooks, SavedWithCode

    SavedWithCode.hub_hooks = HubHooks(save, push)


# Regular expressions of module names. The ranges of numbers, which the commands read for their help, are no
# configuration.
AFTER_IMPORT: dict[str, Callable[[], None]] = {
    r"transformers\.models\.auto\.configuration_auto": announce_configurations,
    r"transformers\.models\.auto\.image_processing_auto": announce_image_processors,
    rf"{PACKAGE}\.(configuration\.(?!ranges$).+|modeling(\..+)?)": register_models,
    rf"{PACKAGE}\.modeling\.pretrained": save_models_with_code,
    rf"{PACKAGE}\.processing\.saving": save_image_processors_with_code,
}
