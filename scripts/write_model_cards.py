"""Writes one model card per recipe to `model_cards/`: the paper's scores, and how to train the model.

    python -m contextseg.scripts.write_model_cards

Run it again when a recipe changes. A trained recipe has the card of its weights instead (contextseg-export),
which this script does not overwrite.
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
    """Whether the card of a recipe is that of trained weights, written by `write_model_card`."""
    path = FOLDER / f"{row.name}.md"
    return path.exists() and BEGIN in path.read_text(encoding="utf-8")


def rows() -> list[Row]:
    return [read_row(name) for name in recipe_names()]


def index() -> str:
    """Returns the text of the folder's README.md."""
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

One card per recipe in [scripts/recipes](../scripts/recipes), written by `python -m contextseg.scripts.write_model_cards`.
The models of the papers take days on GPUs; all scores on these cards are the papers', unless a card says that they were measured
here.

A model that you train gets a card of its own, written from its `run.json` and `evaluation.json` (`hub/model_card.py`): scores with
data and protocol, labels with color and IoU, code that runs as it is, the training command, time and hardware, license and
citation.

{table(["recipe", "data", "paper", "state"], lines)}
"""


if __name__ == "__main__":
    sys.exit(main())
