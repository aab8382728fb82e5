"""Directives for the parts of the reference that are generated from the code when the pages are built.

```{command-options} contextseg-train
```
```{config-fields} GlamSwinConfig
```
```{recipe-table}
```
"""

import argparse
import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any

import yaml
from command_parsers import ROOT, parser_of
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

import contextseg

# "name: text" or "name, other: text" in a docstring, at the margin or below "Args:"
ENTRY = re.compile(r"^( {0,4})([a-z]\w*(?:, [a-z]\w*)*): (.+)$")
PARAMETERS = "parameters-in-millions"
SCORES = ("mIoU", "top-1", "AP-box", "AP-mask")


class Generated(SphinxDirective):
    """A directive whose content is the Markdown that `lines` makes of its argument."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes("\n".join(self.lines(*self.arguments)))

    def lines(self, *arguments: str) -> Iterator[str]:
        raise NotImplementedError


class CommandOptions(Generated):
    """The options of a command, group by group, as its parser knows them."""

    def lines(self, command: str) -> Iterator[str]:
        parser = parser_of(command)
        yield f"{escaped(parser.description or '')}\n"
        groups = [
            (group, [action for action in group._group_actions if action.dest != "help"])
            for group in parser._action_groups
        ]
        groups = [(group, actions) for group, actions in groups if actions]
        for group, actions in groups:
            if len(groups) > 1:
                yield f"\n**{(group.title or '').capitalize()}**\n"
            for action in actions:
                yield definition(f"`{option_text(action)}`", help_text(action))


class ConfigFields(Generated):
    """The fields of a configuration: what it adds itself, then what it shares with its base classes."""

    def lines(self, name: str) -> Iterator[str]:
        cls, documented = getattr(contextseg, name), {}
        for base in (base for base in cls.__mro__ if base.__module__.startswith("contextseg")):
            documented |= entries(inspect.cleandoc(vars(base).get("__doc__") or ""), without=documented)
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        yield f"```{{py:class}} contextseg.{name}\n:no-contents-entry:\n```\n"
        yield f"Presets: {', '.join(f'`{preset}`' for preset in cls.presets)}.\n"
        for field, text in documented.items():
            default = defaults.get(field, dataclasses.MISSING)
            shown = "" if default is dataclasses.MISSING else f", default `{default!r}`"
            yield definition(f"`{field}`{shown}", text)


class RecipeTable(Generated):
    """The recipes, with what the paper prints."""

    def lines(self) -> Iterator[str]:
        yield "| recipe | data | printed in | printed score | printed parameters |\n|---|---|---|---|---|"
        for path in sorted((ROOT / "scripts" / "recipes").glob("*.yaml")):
            paper = yaml.safe_load(path.read_text(encoding="utf-8"))["paper"]
            scores = ", ".join(f"{name} {paper[name]}" for name in SCORES if name in paper)
            parameters = f"{paper[PARAMETERS]} M" if PARAMETERS in paper else ""
            yield f"| `{path.stem}` | {paper['data']} | {paper['source']} | {scores} | {parameters} |"


def definition(term: str, text: str) -> str:
    """An entry of a Markdown definition list."""
    return f"\n{term}\n: {text}\n"


def option_text(action: argparse.Action) -> str:
    """`--steps N`, `--schedule {poly,cosine}` or `MODEL`."""
    choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()
    value = " ".join([action.metavar or choices] if not isinstance(action.metavar, tuple) else action.metavar)
    if not action.option_strings:
        return value
    return ", ".join(getattr(action, "shown", action.option_strings)) + (
        f" {value}" if action.nargs != 0 else ""
    )


def help_text(action: argparse.Action) -> str:
    """The help with its values filled in."""
    return escaped((action.help or "") % {**vars(action), "prog": ""})


def escaped(text: str) -> str:
    """Text on one line, without a special meaning in Markdown."""
    return re.sub(r"([*_<>\[\]])", r"\\\1", one_line(text))


def entries(docstring: str, without: dict[str, str] | None = None) -> dict[str, str]:
    """The text of each name that a docstring explains, in its order, but for those that are known already."""
    found, names, indent = {}, [], 0
    for line in docstring.splitlines():
        if match := ENTRY.match(line):
            names, indent = match[2].split(", "), len(match[1])
            found |= dict.fromkeys(names, match[3])
        elif names and line.startswith(" " * (indent + 1)):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        elif line.strip():
            names = []
    return {name: text for name, text in found.items() if name not in (without or {})}


def one_line(text: str) -> str:
    return " ".join(text.split())


def resolve_public_name(
    app: Sphinx, env: BuildEnvironment, node: nodes.Element, content: nodes.Element
) -> nodes.Node | None:
    """A link to `contextseg.Name` from a signature, which names the module that defines the class."""
    target = node.get("reftarget", "")
    name = target.rpartition(".")[2]
    if not target.startswith("contextseg.") or name not in contextseg.__all__ or target.count(".") == 1:
        return None
    place, domain = node.get("refdoc", ""), env.get_domain("py")
    return domain.resolve_xref(env, place, app.builder, "class", f"contextseg.{name}", node, content)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("command-options", CommandOptions)
    app.add_directive("config-fields", ConfigFields)
    app.add_directive("recipe-table", RecipeTable)
    app.connect("missing-reference", resolve_public_name)
    return {"parallel_read_safe": True}
