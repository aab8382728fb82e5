"""Errors of an upload to the Hub, with messages that say what failed, why, and what to do."""

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
    """An upload to the Hub failed."""


class ProofError(RuntimeError):
    """An exported repository does not work without contextseg, or returns different logits there."""


@contextmanager
def explained(repo_id: str, has_token: bool = False) -> Iterator[None]:
    """Raises a `HubError` for every exception of huggingface_hub in the block.

    An upload is one commit, and the commit is the last request: if anything fails before it, the repository
    is unchanged.

    Args:
        repo_id: Repository that is uploaded to, for the message.
        has_token: Whether the caller passed a token of its own.
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
            f"{repo_id} was not pushed: the Hub rejected the model card. {error} "
            "Correct its front matter, and push again."
        ) from error


def is_of_the_hub(error: RuntimeError) -> bool:
    """Whether huggingface_hub, or hf_xet below it, raised this error, as they do if a large file fails."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    return Path(last).is_relative_to(Path(huggingface_hub.__file__).parent)


def explanation(error: Exception, has_token: bool) -> str:
    """Returns the reason, and what to do before the next attempt."""
    if isinstance(error, LocalTokenNotFoundError):
        return f"no token was found. {LOG_IN}"
    if isinstance(error, OfflineModeIsEnabled):
        return "huggingface_hub is in offline mode. Unset HF_HUB_OFFLINE"
    if isinstance(error, HfHubHTTPError):
        return explanation_of_status(error, has_token or get_token() is not None)
    if isinstance(error, HTTPError):
        return (
            f"the connection was lost ({type(error).__name__}: {error}). All local files are intact; "
            "pushing again does not upload files twice or commit twice. Check the network"
        )
    return f"{type(error).__name__}: {error}. All local files are intact. Check the network"


def explanation_of_status(error: HfHubHTTPError, has_token: bool) -> str:
    status = error.response.status_code
    said = f"{status}: {error.server_message}" if error.server_message else str(status)
    if status == 401:
        state = (
            "the Hub does not accept the token"
            if has_token
            else "no token was found, and the Hub requires one"
        )
        return f"{state} ({said}). {LOG_IN}"
    if status == 403:
        return f"the token has no write access ({said}). Choose your own repository, or a token with access"
    if status in (409, 412):
        return f"another push changed the repository meanwhile ({said}) and was kept. Review that change"
    if status == 429:
        return f"rate limit reached ({said}). Wait a few minutes"
    if status >= 500:
        return (
            f"the Hub has a server error ({said}). All local files are intact. Wait until "
            "https://status.huggingface.co shows no incident"
        )
    return f"the Hub rejected the request ({said}). Correct what the message names"
