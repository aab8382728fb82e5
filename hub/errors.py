"""What went wrong while a repository was uploaded, in words: what failed, why, and what to do."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path

import huggingface_hub
from huggingface_hub import get_token
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)

CAUSES = (HTTPError, LocalTokenNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled, JSONDecodeError)
LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN to a token with write access"


class HubError(OSError):
    """An upload that did not come to its end."""


class ProofError(RuntimeError):
    """An exported repository that does not work without contextseg, or gives other logits there."""


@contextmanager
def explained(repo_id: str, has_token: bool = False) -> Iterator[None]:
    """Inside the block, what huggingface_hub raises becomes a `HubError`.

    An upload is one commit, and the commit is the last request: whatever fails before it, nobody sees a change.
    """
    try:
        yield
    except (*CAUSES, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_of_the_hub(error):
            raise
        is_wrapper = isinstance(error, RuntimeError | LocalEntryNotFoundError) and error.__cause__
        reason = explanation(error.__cause__ if is_wrapper else error, has_token)
        raise HubError(f"{repo_id} was not pushed: {reason}, and push again.") from error
    except ValueError as error:
        if not isinstance(error.__cause__, BadRequestError):
            raise
        raise HubError(
            f"{repo_id} was not pushed: the Hub refuses the model card. {error} Correct its front matter, and push again."
        ) from error


def is_of_the_hub(error: RuntimeError) -> bool:
    """Whether huggingface_hub raised it, or hf_xet, which it calls: that is how they say that a large file failed."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    return Path(last).is_relative_to(Path(huggingface_hub.__file__).parent)


def explanation(error: Exception, has_token: bool) -> str:
    """Why, and what to do before the next attempt."""
    if isinstance(error, LocalTokenNotFoundError):
        return f"no token was found. {LOG_IN}"
    if isinstance(error, OfflineModeIsEnabled):
        return "huggingface_hub is told to stay offline. Unset HF_HUB_OFFLINE"
    if isinstance(error, HfHubHTTPError):
        return explanation_of_status(error, has_token or get_token() is not None)
    if isinstance(error, HTTPError):
        return (
            f"the connection broke ({type(error).__name__}: {error}). All that was saved here is intact; files that arrived "
            "are not sent twice, nor is a commit made twice. Check the network"
        )
    return f"{type(error).__name__}: {error}. All that was saved here is intact. Check the network"


def explanation_of_status(error: HfHubHTTPError, has_token: bool) -> str:
    status = error.response.status_code
    said = f"{status}: {error.server_message}" if error.server_message else str(status)
    if status == 401:
        state = (
            "the Hub does not accept the token" if has_token else "no token was found, and the Hub wants one"
        )
        return f"{state} ({said}). {LOG_IN}"
    if status == 403:
        return f"the token may not write there ({said}). Choose a repository of your own, or a token with write access to it"
    if status in (409, 412):
        return f"it was changed meanwhile by another push ({said}), which was left as it is. Look at what came in"
    if status == 429:
        return f"the Hub asks for a pause ({said}). Wait some minutes"
    if status >= 500:
        return (
            f"the Hub has a fault of its own ({said}). All that was saved here is intact. Wait until "
            "https://status.huggingface.co shows none"
        )
    return f"the Hub refuses it ({said}). Correct what it names"
