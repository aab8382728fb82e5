"""How image processors are saved: with their code beside them."""

import os
from types import ModuleType
from typing import Any


class SavedWithCode:
    """Mixin in front of one of transformers' image processors. The models' base class does the same for models."""

    # `contextseg.hub.repositories` where the package is installed: saves then hold the code as well. Loaded from a repository with
    # `trust_remote_code`, the code has none, and transformers itself copies its files along.
    hub: ModuleType | None = None

    def save_pretrained(self, save_directory: str | os.PathLike, **options: Any) -> None:
        """Writes `preprocessor_config.json` and the code that it needs."""
        if self.hub is None:
            super().save_pretrained(save_directory, **options)
        else:
            self.hub.save(self, super().save_pretrained, save_directory, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """`save_pretrained` into a repository on the Hub, in one commit."""
        if self.hub is None:
            return super().push_to_hub(repo_id, **options)
        return self.hub.push(self, repo_id, **options)
