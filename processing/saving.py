"""Saves image processors together with their code."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple


class HubHooks(NamedTuple):
    """Functions that save an image processor with its code; `registration.py` sets them.

    A copy of the models' `HubHooks`, because `processing` must not import `modeling`.

    Args:
        save: Called with the processor, transformers' own `save_pretrained`, the folder, and the options of
            `save_pretrained`.
        push: Called with the processor, the name of the repository on the Hub, and the options of
            `push_to_hub`.
    """

    save: Callable[..., list[str]]
    push: Callable[..., Any]


class SavedWithCode:
    """Mixin for transformers' image processors; the models' base class does the same for models."""

    # None in the copy of this code in a repository, where transformers copies the files itself.
    hub_hooks: HubHooks | None = None

    def save_pretrained(self, save_directory: str | os.PathLike, **options: Any) -> list[str]:
        """Writes `preprocessor_config.json` and the code of the processor.

        Args:
            save_directory: The folder; it is created if needed.
            **options: `license` of the weights for the model card, in the Hub's spelling; `push_to_hub=True`
                with the options of `push_to_hub`; and those of transformers.

        Returns:
            The path of `preprocessor_config.json`, in a list as in transformers.
        """
        if self.hub_hooks is None:
            return super().save_pretrained(save_directory, **options)
        return self.hub_hooks.save(self, super().save_pretrained, save_directory, **options)

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
