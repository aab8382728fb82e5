"""Summary and REPORT.md of `contextseg-demo`."""

from collections.abc import Mapping
from typing import Any

from ..processing.data.scenes import AMBIGUOUS
from ..processing.metrics import percent, scores_table
from ..training.records import environment

NUM_COMPARED = 40  # test scenes of which both flags are predicted and the attention is measured
NEXT = """
See through its eyes, in the browser: contextseg-app {run}

Next, on your own images (data/train and data/val, each with images/ and masks/, and data/classes.json next to them):
  contextseg-check data/train
  contextseg-train --preset tiny --train data/train --val data/val --output runs/mine
  contextseg-evaluate runs/mine --data data/val
  contextseg-predict runs/mine photo.jpg --output masks/ --explain 120,45
"""
REPORT = """# contextseg demo

{summary}

![Image, ground truth, prediction, attention, and the same scene with the other flag](scenes.png)

## What was done

`contextseg-demo --steps {steps} --scenes {scenes} --size {size} --distance {distance:g} --tokens {tokens} --seed {seed}`: {minutes:.1f} minutes on
{machine}. GLAM-Swin `nano` with {tokens} global tokens per window and UPerNet was trained on {scenes} generated scenes, for {steps} steps
with 8 scenes each. The saved model ([model/](model)) then segmented {pipeline_masks} images through transformers' `pipeline` in a
Python process that cannot import contextseg, with identical masks.

The white areas are snow fields or frozen lakes, drawn by the same code; only a flag shows which (red: ice, blue: snow). In the
scored scenes, no white pixel is closer to the flag than {distance:g} of {size} pixels. A model that cannot see the flag is right on half of
the white pixels, and on none with *both* flags.

## Scores

{table}

![Loss and mIoU](loss.png)

## Attention

{attention}
`contextseg-app {output}/run` shows this in the browser for any image and pixel, with the validation scenes as examples; it needs
`pip install 'contextseg[app]'`.

## What this shows, and what it does not

Training, evaluation, saving and the pipeline work on this machine, and the model uses a cue that lies outside the window of a
white pixel at the finer stages. The demo does not show that this takes global tokens: the coarsest windows of this small model and
UPerNet's pooling cover the whole scene. `contextseg-demo --tokens 0 --output demo-swin` trains the model without them; with seed 0
we measured about the same scores (mIoU 86.3 %, and 86.1 % with tokens).
"""
ATTENTION = """The map shows how much the global tokens of the window around the cross attend to each pixel of the image (GLAM's eq. 7). The table
gives attention around the flag over the mean of the image, averaged over {compared} scenes; the figure shows stage {shown}. (Attending to
one color is enough: a model that looks for a red flag infers the blue one from its absence.)

| stage | window | around a red flag | around a blue flag |
|---|---|---|---|
{rows}
"""


def summary(facts: Mapping[str, Any]) -> str:
    """Returns the scores in two sentences."""
    scores = facts["scores"]
    white = ", ".join(
        f"{row['name']} {percent(row['iou'])} %" for row in (scores["per_class"][at] for at in AMBIGUOUS)
    )
    return (
        f"mIoU {percent(scores['mean_iou'])} %; IoU of {white}; "
        f"{percent(facts['right'])} % of the white pixels are right with both flags; 0 % for a model that cannot see the flag."
    )


def report(settings: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """Returns the text of REPORT.md.

    Args:
        settings: The options of the command.
        facts: Results of its steps: `scores`, `right`, `attention`, `shown`, `pipeline_masks` and `minutes`.
    """
    hardware = environment()["hardware"]
    return REPORT.format(
        **settings,
        summary=summary(facts),
        table=scores_table(facts["scores"]),
        attention=attention_section(facts),
        pipeline_masks=facts["pipeline_masks"],
        minutes=facts["minutes"],
        machine=f"{hardware['cores']} cores of {hardware['processor']}",
    )


def attention_section(facts: Mapping[str, Any]) -> str:
    """Returns the section about attention, a table by stage."""
    if not facts["attention"]:
        return "Plain Swin has no global tokens, so there is no global attention to show.\n"
    rows = [
        f"| {row.stage + 1} | {row.window} px | {row.red:.1f} | {row.blue:.1f} |"
        for row in facts["attention"]
    ]
    return ATTENTION.format(rows="\n".join(rows), shown=facts["shown"].stage + 1, compared=NUM_COMPARED)
