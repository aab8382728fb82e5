"""Started by test_hub_journey.py with `python -I`, a Hub of its own and empty caches: somebody who never installed contextseg.

    python -I hub_visitor.py HUB_NAME OUTPUT

Works in the folder OUTPUT: runs the lines of use on the repository's card and those of docs/how-to/publish.md (in use.py), on photo.jpg.
printed.txt is what the card's lines print, LABEL.png a mask of the page's `regions`, logits.npy what its model says.
"""

import contextlib
import io
import os
import re
import sys
from pathlib import Path

sys.modules["contextseg"] = None  # `-I` alone does not hide an editable install

import numpy as np  # noqa: E402
import torch  # noqa: E402
from huggingface_hub import ModelCard  # noqa: E402
from PIL import Image  # noqa: E402


def logits(segment, photo):
    inputs = segment.image_processor(Image.open(photo), return_tensors="pt")
    with torch.no_grad():
        return segment.model(**inputs).logits.numpy()


def main(name, output):
    os.chdir(output)
    code = re.search(r"```python\n(.+?)```", ModelCard.load(name).text, re.DOTALL)[1]
    names, printed = {}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    Path("printed.txt").write_text(printed.getvalue())
    exec(Path("use.py").read_text(), names)
    for region in names["regions"]:
        region["mask"].save(f"{region['label']}.png")
    np.save("logits.npy", logits(names["segment"], "photo.jpg"))
    assert type(names["segment"].model).__module__.startswith("transformers_modules.")


if __name__ == "__main__":
    main(*sys.argv[1:])
