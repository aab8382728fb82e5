"""What `import contextseg` sets up: transformers' Auto classes know our types, and what is saved carries its code.

All of it waits until it is needed. transformers learns our `model_type`s when its AutoConfig is loaded, and our classes are
imported when one of them is looked up or a configuration is imported: so importing contextseg loads no torch, and a
command answers `--help` at once.
"""

import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

PACKAGE = __name__.rpartition(".")[0]
CONFIGURATIONS = {
    "cswin": "CswinConfig",
    "glam_swin": "GlamSwinConfig",
    "maformer": "MaformerConfig",
    "mask_rcnn": "MaskRcnnConfig",
    "segdeformer": "SegDeformerConfig",
}


def register() -> None:
    """Calls each function of `AFTER_IMPORT`: now if its module is loaded already, else as soon as it is."""
    for module, function in AFTER_IMPORT.items():
        if module in sys.modules:
            function()
        else:
            sys.meta_path.insert(0, AfterImport(module, function))


class AfterImport(MetaPathFinder):
    """Calls a function once, right after the first import of a module."""

    def __init__(self, module: str, function: Callable[[], None]) -> None:
        self.module, self.function = module, function

    def find_spec(self, name: str, _path: Any = None, _target: ModuleType | None = None) -> ModuleSpec | None:
        """The module's own spec, with the call added to its loader; None for every other module."""
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_call(module: ModuleType) -> None:
            execute(module)
            self.function()

        spec.loader.exec_module = execute_and_call
        return spec


class ConfigurationOnDemand:
    """Stands for a configuration class in transformers' AutoConfig until somebody uses it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def _load(self) -> type:
        from .configuration import auto_configurations  # importing it registers the classes, see AFTER_IMPORT

        return getattr(auto_configurations, self._name)

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._load(), attribute)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._load()(*args, **options)


class LoadedWhenRead(dict):
    """Entries of which some are added by a function when the first is read."""

    def __init__(self, known: dict, load: Callable[[], None]) -> None:
        super().__init__(known)
        self._load = load

    def _loaded(self) -> dict:
        load, self._load = self._load, lambda: None
        load()
        return dict(self)

    def __contains__(self, key: Any) -> bool:
        return key in self._loaded()

    def keys(self) -> Any:
        return self._loaded().keys()

    def values(self) -> Any:
        return self._loaded().values()

    def items(self) -> Any:
        return self._loaded().items()


def announce_configurations() -> None:
    """AutoConfig finds our configurations by their `model_type`. Nothing may be imported: transformers itself is half loaded."""
    auto = sys.modules["transformers.models.auto.configuration_auto"]
    for model_type, name in CONFIGURATIONS.items():
        auto.CONFIG_MAPPING.register(model_type, ConfigurationOnDemand(name), exist_ok=True)


def register_models() -> None:
    from .modeling.auto_classes import register_auto_classes

    register_auto_classes()


def announce_image_processors() -> None:
    """AutoImageProcessor finds ours. They are loaded when it looks: every module of a model imports its table halfway through."""
    mapping = sys.modules["transformers.models.auto.image_processing_auto"].IMAGE_PROCESSOR_MAPPING
    mapping._extra_content = LoadedWhenRead(mapping._extra_content, register_image_processors)


def register_image_processors() -> None:
    from transformers import AutoImageProcessor, DetrImageProcessor, DetrImageProcessorPil

    from .configuration.auto_configurations import CONFIGURATIONS, MaskRcnnConfig
    from .processing.image_processing_segmentation import (
        SegmentationImageProcessor,
        SegmentationImageProcessorPil,
    )

    for config in CONFIGURATIONS:
        processors = {"torchvision": SegmentationImageProcessor, "pil": SegmentationImageProcessorPil}
        if config is MaskRcnnConfig:
            processors = {"torchvision": DetrImageProcessor, "pil": DetrImageProcessorPil}
        AutoImageProcessor.register(config, image_processor_classes=processors, exist_ok=True)


def save(saved: Any, write: Callable[..., Any], folder: Any, **options: Any) -> None:
    from .hub.repositories import save

    save(saved, write, folder, **options)


def push(saved: Any, repo_id: str, **options: Any) -> Any:
    from .hub.repositories import push

    return push(saved, repo_id, **options)


def save_models_with_code() -> None:
    from .modeling.pretrained import ContextsegPreTrainedModel

    ContextsegPreTrainedModel.hub = SimpleNamespace(save=save, push=push)


def save_image_processors_with_code() -> None:
    from .processing.saving import SavedWithCode

    SavedWithCode.hub = SimpleNamespace(save=save, push=push)


AFTER_IMPORT: dict[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": announce_configurations,
    "transformers.models.auto.image_processing_auto": announce_image_processors,
    f"{PACKAGE}.configuration": register_models,
    f"{PACKAGE}.modeling.pretrained": save_models_with_code,
    f"{PACKAGE}.processing.saving": save_image_processors_with_code,
}
