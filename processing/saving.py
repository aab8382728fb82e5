"""How image processors are saved: with their code beside them."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple


class HubHooks(NamedTuple):
    """What saves an image processor so that its repository holds its own code; as the models' `HubHooks`.

    save: called with the processor, transformers' own `save_pretrained`, the folder, and the options of `save_pretrained`.
    push: called with the processor, the repository's name on the Hub, and the options of `push_to_hub`.
    """

    save: Callable[..., None]
    push: Callable[..., Any]


class SavedWithCode:
    """Mixin in front of one of transformers' image processors. The models' base class does the same for models."""

    # None in a repository's copy of this code: there transformers itself copies the files along.
    hub_hooks: HubHooks | None = None

    def save_pretrained(self, save_directory: str | os.PathLike, **options: Any) -> None:
        """Writes `preprocessor_config.json` and the code that it needs."""
        if self.hub_hooks is None:
            super().save_pretrained(save_directory, **options)
        else:
            self.hub_hooks.save(self, super().save_pretrained, save_directory, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """`save_pretrained` into a repository on the Hub, in one commit."""
        if self.hub_hooks is None:
            return super().push_to_hub(repo_id, **options)
        return self.hub_hooks.push(self, repo_id, **options)
