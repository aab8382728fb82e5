"""Saves image processors together with their code."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple


class HubHooks(NamedTuple):
    """Callables that save an image processor with its code, like the models' `HubHooks`.

    Attributes:
        save: Called with the processor, transformers' own `save_pretrained`, the folder, and the options of
            `save_pretrained`.
        push: Called with the processor, the name of the repository on the Hub, and the options of
            `push_to_hub`.
    """

    save: Callable[..., None]
    push: Callable[..., Any]


class SavedWithCode:
    """Mixin for transformers' image processors; the models' base class does the same for models."""

    # None in the copy of this code in a repository, where transformers copies the files itself.
    hub_hooks: HubHooks | None = None

    def save_pretrained(self, save_directory: str | os.PathLike, **options: Any) -> None:
        """Writes `preprocessor_config.json` and the code of the processor.

        Args:
            save_directory: The folder; it is created if needed.
            **options: Options of transformers' `save_pretrained`.
        """
        if self.hub_hooks is None:
            super().save_pretrained(save_directory, **options)
        else:
            self.hub_hooks.save(self, super().save_pretrained, save_directory, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """Saves to a repository on the Hub, in one commit.

        Args:
            repo_id: Name of the repository, such as "user/name".
            **options: Options of transformers' `push_to_hub`.
        """
        if self.hub_hooks is None:
            return super().push_to_hub(repo_id, **options)
        return self.hub_hooks.push(self, repo_id, **options)
