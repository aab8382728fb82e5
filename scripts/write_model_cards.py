"""One model card for each recipe, in `model_cards/`: what the paper printed, how to train it, and that nobody here has.

    python -m contextseg.scripts.write_model_cards

writes them again after a recipe has changed. A recipe that was trained has the card of its weights instead (contextseg-export);
such a card is left alone.
"""

import sys
from pathlib import Path

from ..hub.card_sections import table
from ..hub.model_card import BEGIN, write_text
from ..training.recipe_cards import Row, card, main_score, read_row
from ..training.recipes import recipe_names

FOLDER = Path(__file__).parents[1] / "model_cards"


def main() -> int:
    for row in rows():
        if not is_trained(row):
            write_text(FOLDER / f"{row.name}.md", card(row))
    write_text(FOLDER / "README.md", index())
    print(f"{len(rows())} cards are up to date in {FOLDER}")
    return 0


def is_trained(row: Row) -> bool:
    """Whether its card is that of weights, as `write_model_card` writes them."""
    path = FOLDER / f"{row.name}.md"
    return path.exists() and BEGIN in path.read_text(encoding="utf-8")


def rows() -> list[Row]:
    return [read_row(name) for name in recipe_names()]


def index() -> str:
    """The folder's README.md."""
    lines = [
        [
            f"[{row.title}]({row.name}.md)",
            row.recipe.paper["data"],
            main_score(row.recipe.paper),
            "trained" if is_trained(row) else "not trained here",
        ]
        for row in rows()
    ]
    return f"""# Model cards

One card for each recipe in [scripts/recipes](../scripts/recipes), written by `python -m contextseg.scripts.write_model_cards`.
The papers' sizes take GPUs for days; a card shows no score that was not measured here, unless as the paper's.

A model that you train carries a card of its own, made of its `run.json` and `evaluation.json` (`hub/model_card.py`): scores with data
and protocol, labels with colour and IoU, lines of use that run as they stand, the training command, seconds and hardware, licence
and citation.

{table(["recipe", "data", "paper", "state"], lines)}
"""


if __name__ == "__main__":
    sys.exit(main())
