"""contextseg-train: trains a segmenter on images with masks, a classifier on labeled images, or a detector on
images with boxes and masks.

    contextseg-train --model glam_swin --preset tiny --train data/train --val data/val --output runs/streets
    contextseg-train --recipe maformer_small_imagenet1k --train imagenet/train --val imagenet/val --output runs/small
    contextseg-train --task detection --preset nano --train data/train --val data/val --output runs/things
    contextseg-train --recipe maformer_small_imagenet1k --dry-run

Heavy imports follow the parsing of the command line, so that `--help` answers at once.
"""

import sys

from ..training.command_line import CommandLine, short_errors
from ..training.options import train_arguments, train_parser

PROGRAM = "contextseg-train"
DESCRIPTION = """Train a semantic segmenter on images and masks, with --task classification an image classifier on labeled
images, or with --task detection a detector on data in COCO's format. Writes best/ and last/ (both load with from_pretrained),
run.json, log.jsonl and TensorBoard curves to the output folder. Stop a run with Ctrl-C or SIGTERM: it saves, and --resume
continues exactly where it stopped."""


def new_parser() -> CommandLine:
    return train_parser(PROGRAM, DESCRIPTION)


def main(argv: list[str] | None = None) -> int:
    given = new_parser().given(argv)
    from ..training.recipes import with_recipe

    with short_errors(PROGRAM, given.get("traceback", False)):
        given, recipe = with_recipe(given)
        if recipe:
            print(recipe)
        if given.get("dry_run"):
            from ..training.dry_run import plan

            return plan(train_arguments(given), recipe)
        from ..training.run import train
        from ..training.setup import resolve

        return train(resolve(given))


if __name__ == "__main__":
    sys.exit(main())
