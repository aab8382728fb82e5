"""Started by test_serving.py with `python -I`: an Inference Endpoint as the Hub's toolkit runs one, and those who ask it.

    python -I endpoint_visitor.py MODEL REQUESTS ANSWERS

REQUESTS is JSON, [content type, query, body in base64] by name; ANSWERS becomes [status, content] by name. Its entry "client" is
what huggingface_hub's own client makes of the answer to the first request: label, score and the size of each mask.
"""

import base64
import importlib.util
import io
import json
import sys
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

sys.modules["contextseg"] = None  # `-I` alone does not hide an editable install

from huggingface_hub import InferenceClient  # noqa: E402
from PIL import Image  # noqa: E402


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


def main(model, requests, answers):
    Endpoint.handler = started(Path(model))
    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    asked = json.loads(Path(requests).read_text())
    found = {name: answer(url, *request) for name, request in asked.items()}
    first = base64.b64decode(next(iter(asked.values()))[2])
    regions = InferenceClient(model=url).image_segmentation(first, threshold=0.0)
    found["client"] = [[region.label, region.score, region.mask.size] for region in regions]
    Path(answers).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
