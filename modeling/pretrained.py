"""Base class of all models: initialization, input checks, saving and pushing."""

import os
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from importlib import import_module
from json import JSONDecodeError
from types import ModuleType
from typing import Any, NamedTuple, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.models.auto import modeling_auto
from transformers.utils.output_capturing import install_output_capuring_hook, maybe_install_capturing_hooks

HUB_OPTIONS = {"cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token"}
HOOKED = "_output_capturing_hooks_installed"  # transformers' mark of a model that has them

# Pipelines look for the name of a model's class in these tables; without it they log an error, although it works.
NAMES_FOR_PIPELINES = {
    "ForImageClassification": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    "ForObjectDetection": modeling_auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
    "ForSemanticSegmentation": modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
}


class HubHooks(NamedTuple):
    """Functions that save a model with its code; `registration.py` sets them if contextseg is installed.

    Args:
        save: Called with the model, transformers' own `save_pretrained`, the folder, and the options of
            `save_pretrained`.
        push: Called with the model, the name of the repository on the Hub, and the options of `push_to_hub`.
    """

    save: Callable[..., None]
    push: Callable[..., Any]


class ContextsegPreTrainedModel(PreTrainedModel):
    """Base class of all models. Modules with their own parameters initialize them in `reset_own_weights`."""

    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # our losses are means: Trainer must average over accumulated batches
    _supports_sdpa = True
    _supports_attention_backend = True
    # None in the copy of this code in a Hub repository: there transformers itself copies the files.
    hub_hooks: HubHooks | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        """Names the class in transformers' tables for pipelines, also where it is loaded as code from the Hub."""
        super().__init_subclass__(**options)
        for purpose, names in NAMES_FOR_PIPELINES.items():
            if cls.__name__.endswith(purpose) and cls.config_class is not None:
                names[cls.config_class.model_type] = cls.__name__

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Loads a checkpoint as transformers does, and adapts its first convolution to other `num_channels`.

        Args:
            pretrained_model_name_or_path: Local folder, or name on the Hub.
            *args: Further arguments of transformers.
            **kwargs: Options of transformers and configuration fields. With other `num_channels` than the
                checkpoint's, the weights of known channels are kept, see `input_channels.py`.

        Raises:
            OSError: If a file of the checkpoint is missing or damaged.
            ImportError: If the number of channels differs, and the library is not installed.
        """
        load, source = super().from_pretrained, pretrained_model_name_or_path
        stored = other_channels(cls.config_class, source, kwargs)
        if stored is not None:
            load = partial(library_module("modeling.input_channels").load_for_channels, load, stored)
        try:
            return load(source, *args, **kwargs)
        except (SafetensorError, JSONDecodeError) as error:
            raise OSError(
                f"the weights in {source} (model*.safetensors) are damaged: {error}. "
                "Copy them again from where they were intact."
            ) from error

    def save_pretrained(
        self, save_directory: str | os.PathLike, is_main_process: bool = True, **options: Any
    ) -> None:
        """Saves a self-contained repository: weights, configuration, code and model card.

        Args:
            save_directory: Folder to write to; created if missing.
            is_main_process: Whether this process writes code and model card; False for all but one in
                distributed runs.
            **options: `license` of the weights for the model card, in the Hub's spelling; `push_to_hub=True`
                with the options of `push_to_hub`; and those of transformers, such as `max_shard_size`.

        Raises:
            ValueError: If the configuration was given another number of labels than the classifier has.
        """
        check_label_count(self)
        write = super().save_pretrained
        if self.hub_hooks is None or not is_main_process or options.get("distributed_checkpoint"):
            write(save_directory, is_main_process, **options)
        else:
            self.hub_hooks.save(self, write, save_directory, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """Pushes what `save_pretrained` writes to the Hub in one commit; creates the repository if needed.

        Args:
            repo_id: Repository on the Hub, such as "me/streets".
            **options: `license` of the weights for the model card, in the Hub's spelling; `token`, `private`,
                `revision`, `create_pr`, `commit_message`, `commit_description` and `tags`; and those of
                `save_pretrained`.

        Returns:
            The commit, a `huggingface_hub.CommitInfo`.

        Raises:
            HubError: If the upload fails, or somebody else pushed meanwhile. Nothing is committed then.
        """
        if self.hub_hooks is None:
            return super().push_to_hub(repo_id, **options)
        return self.hub_hooks.push(self, repo_id, **options)

    def asked_outputs(
        self, output_hidden_states: bool | None, output_attentions: bool | None
    ) -> tuple[bool, bool]:
        """The two options of a call; None takes that of the configuration, as in transformers."""
        given = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        return tuple(
            bool(getattr(self.config, name) if value is None else value) for name, value in given.items()
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copies all attributes, hooks included."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        vars(copied).update(deepcopy(vars(self), memo))
        return copied

    def __reduce_ex__(self, protocol: int) -> Any:
        """Pickles without the hooks that capture outputs: they are local functions, which cannot be pickled.

        transformers installs them again where they are needed.
        """
        remove_capturing_hooks(self)
        return super().__reduce_ex__(protocol)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores a pickled model, and the hooks that it had."""
        super().__setstate__(state)
        for module in self.modules():
            if getattr(module, HOOKED, None) is False:
                maybe_install_capturing_hooks(module)

    def get_input_embeddings(self) -> None:
        """Returns None: pixels have no embedding table. FSDP in accelerate calls this."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.ConvTranspose3d):  # which transformers leaves out
            init.normal_(module.weight, std=self.config.initializer_range)
            init.zeros_(module.bias)
        if hasattr(module, "reset_own_weights"):
            module.reset_own_weights(self.config.initializer_range)


def check_label_count(model: PreTrainedModel) -> None:
    """Raises ValueError if the classifier of a model has another number of labels than its configuration."""
    classifier, labels = getattr(model, "classifier", None), model.config.num_labels
    rows = getattr(classifier, "out_channels", getattr(classifier, "out_features", labels))
    if rows != labels:
        raise ValueError(
            f"the configuration has {labels} labels, but the classifier of the model has {rows}, so that the saved files "
            "could not be loaded. Change the labels of a segmenter with model.replace_labels(id2label)."
        )


def remove_capturing_hooks(model: nn.Module) -> None:
    """Removes transformers' hooks that capture outputs, and marks the models in `model` that had them."""
    for module in model.modules():
        for key, hook in list(module._forward_hooks.items()):
            if getattr(hook, "__qualname__", "").startswith(install_output_capuring_hook.__name__):
                del module._forward_hooks[key]
        if getattr(module, HOOKED, False):
            setattr(module, HOOKED, False)


def other_channels(config_class: type[PreTrainedConfig], name: Any, options: Mapping[str, Any]) -> int | None:
    """Returns the number of channels of a checkpoint if options of `from_pretrained` ask for another one."""
    wanted = options.get("num_channels", getattr(options.get("config"), "num_channels", None))
    if name is None or wanted is None:
        return None
    hub = {option: options[option] for option in HUB_OPTIONS & options.keys()}
    content = config_class.get_config_dict(name, **hub)[0]
    while content.get("backbone_config"):  # that of GLAM has one of its own
        content = content["backbone_config"]
    stored = content.get("num_channels", 3)
    return stored if stored != wanted else None


def library_module(name: str) -> ModuleType:
    """Imports a module of the installed library, such as "modeling.swin_checkpoints".

    Code that loads other checkpoints is not exported with a model. Raises ImportError without contextseg.
    """
    try:
        return import_module(f"contextseg.{name}")
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] != "contextseg":
            raise
        raise ImportError(
            "loading other checkpoints needs the contextseg library; a model's repository has only a part. "
            "Install it with `pip install contextseg`."
        ) from error


def check_images(
    config: PreTrainedConfig,
    pixel_values: Tensor,
    pixel_mask: Tensor | None = None,
    output_attentions: bool | None = None,
) -> None:
    """Raises ValueError unless `pixel_values` is float (B, num_channels, H, W) and `pixel_mask` (B, H, W).

    Also raises it if `output_attentions` is set and the attention implementation does not return them.
    """
    # Configurations of users may lack both.
    check_pixels(pixel_values, getattr(config, "num_channels", 3), getattr(config, "num_axes", 2))
    shape = tuple(pixel_values.shape)
    if pixel_mask is not None and not (
        isinstance(pixel_mask, Tensor) and tuple(pixel_mask.shape) == (shape[0], *shape[2:])
    ):
        raise ValueError(
            f"pixel_mask is a {type(pixel_mask).__name__} of shape {tuple(pixel_mask.shape)}; a tensor {(shape[0], *shape[2:])} is required, "
            "with 1 for image and 0 for padding."
        )
    if output_attentions and config._attn_implementation != "eager":
        raise ValueError(
            f"attn_implementation '{config._attn_implementation}' does not compute attention matrices. "
            "Call model.set_attn_implementation('eager') before using output_attentions=True."
        )


def as_weights(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """The images in the floating-point type of the weights, as Trainer's fp16_full_eval and bf16_full_eval need."""
    for weight in model.parameters():
        if weight.is_floating_point():
            return pixel_values.to(weight.dtype)
    return pixel_values


def check_pixels(pixel_values: Tensor, num_channels: int, num_axes: int = 2) -> None:
    """Raises ValueError unless `pixel_values` is a float tensor (B, num_channels, H, W) without a size of 0."""
    if not isinstance(pixel_values, Tensor):
        raise ValueError(
            f"pixel_values is of type {type(pixel_values).__name__}; a tensor is required. Prepare images with the "
            'model\'s image processor and return_tensors="pt".'
        )
    shape = tuple(pixel_values.shape)
    if len(shape) != 2 + num_axes or shape[1] != num_channels:
        raise ValueError(
            f"pixel_values has shape {shape}; (batch, {num_channels}, {'slices, ' * (num_axes == 3)}height, width) is required. "
            "Prepare images with the model's image processor, or set num_channels."
        )
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"pixel_values are {pixel_values.dtype}; floating point is required. The model's image processor "
            "scales and normalizes images; prepare them with it."
        )
    if not torch.compiler.is_compiling() and 0 in shape:  # a graph cannot raise
        raise ValueError(f"pixel_values has shape {shape}, which holds no pixels. Leave out empty batches.")
