"""Started by test_serving.py with `python -I`: an Inference Endpoint as the Hub's toolkit runs one, and those who ask it.

    python -I endpoint_visitor.py FOLDER

FOLDER has model/ and requests.json, [content type, query, body in base64] by name; answers.json becomes [status, content] by
name. Its entry "printed" is what the lines for the Hub's own client in docs/how-to/serve.md print, run in FOLDER.
"""

import base64
import contextlib
import importlib.util
import io
import json
import os
import re
import sys
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

sys.modules["contextseg"] = None  # `-I` alone does not hide an editable install

from PIL import Image  # noqa: E402

PAGE = Path(__file__).resolve().parents[1] / "docs/how-to/serve.md"


def started(model):
    """What the toolkit makes of a folder with a `handler.py`."""
    spec = importlib.util.spec_from_file_location("handler.EndpointHandler", model / "handler.py")
    sys.path.insert(0, str(model))
    module = importlib.util.module_from_spec(spec)
    sys.modules["handler.EndpointHandler"] = module
    spec.loader.exec_module(module)
    return module.EndpointHandler(str(model))


def deserialized(content_type, body):
    """The data of a request: JSON as it is, an image decoded and as RGB."""
    if content_type == "application/json":
        return json.loads(body)
    if content_type and content_type.startswith("image/"):
        return {"inputs": Image.open(io.BytesIO(body)).convert("RGB")}
    raise ValueError(f'Content type "{content_type}" not supported.')


def typed(value):
    """A value of the query, of which only whole numbers and booleans are not text."""
    return int(value) if value.isnumeric() else {"true": True, "false": False}.get(value, value)


class Endpoint(BaseHTTPRequestHandler):
    handler = None

    def do_POST(self):
        try:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            data = deserialized(self.headers["Content-Type"], body)
            if "inputs" not in data:
                raise ValueError("Body needs to provide a inputs key")
            query = dict(parse_qsl(urlsplit(self.path).query))
            if query and "parameters" not in data:
                data["parameters"] = {name: typed(value) for name, value in query.items()}
            status, answer = 200, self.handler(data)
        except Exception as error:
            status, answer = 400, {"error": str(error)}
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def answer(url, content_type, query, body):
    request = urllib.request.Request(f"{url}?{query}", base64.b64decode(body), {"Content-Type": content_type})
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def run_page(url):
    """What the Python of the page prints, with this address in place of its own."""
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
    code, count = re.subn(r"https://[\w.-]+", url, code)
    assert count == 1
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, {})
    return printed.getvalue()


def main(folder):
    os.chdir(folder)
    Endpoint.handler = started(Path("model").resolve())
    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    asked = json.loads(Path("requests.json").read_text())
    found = {name: answer(url, *request) for name, request in asked.items()}
    Path("answers.json").write_text(json.dumps(found | {"printed": run_page(url)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
