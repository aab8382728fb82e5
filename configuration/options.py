"""Checks that every configuration shares: unknown options fail, presets are looked up by name."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`, did you mean 'window_size'?` when a known name is close, else the list of known names."""
    known = sorted(known)
    close = get_close_matches(name, known, n=1)
    return f", did you mean '{close[0]}'?" if close else f". Known: {', '.join(known)}."


def reject_unknown_options(owner: str, options: Mapping[str, object], known: Iterable[str]) -> None:
    """Raises for the first option that `owner` does not have.

    transformers configurations keep any keyword, so that a typing error trains another model than the one meant.
    """
    known = set(known)
    for name in options:
        if name not in known:
            raise ValueError(f"{owner} has no option '{name}'{did_you_mean(name, known)}")


def choose(kind: str, name: str, table: Mapping[str, object]) -> object:
    """The entry of `table` called `name`, or an error that lists what there is.

    In a repository that was saved with its code, entries that its model does not use are `NotImplemented`.
    """
    if name not in table:
        raise ValueError(f"no {kind} '{name}'{did_you_mean(name, table)}")
    if table[name] is NotImplemented:
        held = " and ".join(f"'{key}'" for key, entry in table.items() if entry is not NotImplemented)
        raise ValueError(
            f"this repository holds the code of {kind} {held or 'None'} only, not of '{name}'. contextseg has all of them: "
            "install it, and `import contextseg` in place of trust_remote_code=True."
        )
    return table[name]
