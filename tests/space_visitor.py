"""Started by test_serving.py with `python -I`: opens a Space, asks it over HTTP, and clicks; no contextseg.

    python -I space_visitor.py SPACE PHOTO OUTPUT

OUTPUT/mask.png is the mask of PHOTO, looks.png where its pixel (3, 2) looks, report.json what else the page answers.
"""

import json
import os
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

sys.modules["contextseg"] = None  # `-I` alone does not hide an editable install
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

from gradio_client import Client, handle_file  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402


def main(space, photo, output):
    os.environ["GRADIO_TEMP_DIR"] = str(output / "gradio")
    names = runpy.run_path(str(space / "app.py"), run_name="space")
    (output / "damaged.png").write_bytes(b"no image")
    _, url, _ = names["demo"].launch(prevent_thread_lock=True, quiet=True)
    client = Client(url, verbose=False, download_files=str(output / "downloads"))
    overlay, mask, table = client.predict(handle_file(str(photo)), api_name="/segment")
    shutil.copy(mask, output / "mask.png")
    try:
        client.predict(handle_file(str(output / "damaged.png")), api_name="/segment")
    except AppError as error:
        complaint = str(error)
    names["demo"].close()
    names["page"].look(str(photo), SimpleNamespace(index=[3, 2])).save(output / "looks.png")
    report = {
        "legend": [region["label"] for region in overlay["annotations"]],
        "table": table["data"],
        "complaint": complaint,
        "components": [component["type"] for component in names["demo"].config["components"]],
        "code": type(names["page"].segmenter.model).__module__,
    }
    (output / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
