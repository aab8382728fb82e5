"""A Hub of one's own: the requests of huggingface_hub that pushing and loading a repository takes, answered in memory.

It keeps the rules that pushes depend on: a token, a commit on top of the one that was read, large files by their
SHA-256, and front matter that is valid. `hub.faults` makes it fail, or hang up, where a test wants it to.
"""

import base64
import hashlib
import json
import re
import socket
import time
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import yaml
from huggingface_hub import constants
from huggingface_hub.repocard_data import model_index_to_eval_results

REPOSITORY = r"(?P<name>[\w.-]+/[\w.-]+)"
TOKEN = "hf_loopback"
NAMES = re.compile(r"^[\w.-]+(/[\w.-]+)?$")  # of datasets and models in front matter
HANG_UP = "connection closed"
LOSE_REPLY = "connection closed after the work was done"


@dataclass
class Fault:
    """What happens to requests such as "PUT /_lfs/..." in place of their answer: a status, or a connection that ends."""

    request: str  # regular expression of "METHOD path"
    happens: int | str
    times: int = 1_000_000
    message: str = ""


class LoopbackHub(ThreadingHTTPServer):
    """`repositories[name]` is a list of commits, each a dict from file name to bytes; the first is empty."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories = {}
        self.large_files = {}
        self.faults = []
        self.requests = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def files(self, name):
        return self.repositories[name][-1]

    def environment(self, home):
        """Variables for a process that shall see this Hub only, with its caches under `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def adopt_this_process(self, monkeypatch, home):
        """The same for the process that runs; huggingface_hub waits for nothing between attempts."""
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        for name, value in (
            ("ENDPOINT", self.url),
            ("HUGGINGFACE_CO_URL_TEMPLATE", self.url + "/{repo_id}/resolve/{revision}/{filename}"),
            ("HF_HUB_CACHE", str(home)),
            ("HF_TOKEN_PATH", str(home / "token")),
            ("HF_HUB_DISABLE_XET", True),
        ):
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(time, "sleep", lambda _: None)

    def fault_of(self, request):
        fault = next(
            (fault for fault in self.faults if fault.times and re.match(fault.request, request)), None
        )
        if fault:
            fault.times -= 1
        return fault


class RefusalError(Exception):
    """Ends a request with a status, and with what the Hub says about it."""

    def __init__(self, status, message="", code=None, errors=()):
        super().__init__(message)
        self.status, self.code = status, code
        self.content = {"error": message, "errors": [{"message": error} for error in errors], "warnings": []}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.answer(
            (r"/api/repos/create", self.create),
            (r"/api/validate-yaml", self.validate),
            (rf"/api/models/{REPOSITORY}/preupload/.*", self.preupload),
            (rf"/{REPOSITORY}\.git/info/lfs/objects/batch", self.large_file_targets),
            (rf"/api/models/{REPOSITORY}/commit/.*", self.commit),
        )

    def do_PUT(self):
        self.answer((r"/_lfs/(?P<oid>.+)", self.large_file))

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.answer(
            (rf"/{REPOSITORY}/resolve/[^/]+/(?P<file>.+)", self.file),
            (rf"/api/models/{REPOSITORY}(/revision/.+)?", self.information),
        )

    def answer(self, *routes):
        path = self.path.partition("?")[0]
        request = f"{self.command} {path}"
        self.server.requests.append(request)
        fault = self.server.fault_of(request)
        if fault and fault.happens == HANG_UP:
            self.rfile.read(min(1000, int(self.headers.get("Content-Length", 0))))
            return self.hang_up()
        body = self.body()
        try:
            if fault and fault.happens != LOSE_REPLY:
                raise RefusalError(fault.happens, fault.message)
            matches = ((re.fullmatch(pattern, path), route) for pattern, route in routes)
            found = next((pair for pair in matches if pair[0]), None)
            if not found:
                raise RefusalError(404, f"there is no {request}", code="EntryNotFound")
            groups = {name: value for name, value in found[0].groupdict().items() if value is not None}
            reply = found[1](body, **groups)
        except RefusalError as refused:
            return self.reply(refused.content, refused.status, refused.code, str(refused))
        return self.hang_up() if fault else self.reply(*reply if isinstance(reply, tuple) else (reply,))

    def hang_up(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def check_token(self):
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise RefusalError(401, "Invalid credentials in Authorization header")

    def create(self, body):
        self.check_token()
        request = json.loads(body)
        name = f"{request.get('organization') or 'me'}/{request['name']}"
        found = {"url": f"{self.server.url}/{name}", "name": name, "id": name}
        status = 409 if name in self.server.repositories else 200
        self.server.repositories.setdefault(name, [{}])
        return found, status

    def validate(self, body):
        if errors := faults_of_card(json.loads(body)["content"]):
            raise RefusalError(400, "Invalid metadata", errors=errors)
        return {"errors": [], "warnings": []}

    def preupload(self, body, name):
        self.check_token()
        files = [file["path"] for file in json.loads(body)["files"]]
        mode = {True: "lfs", False: "regular"}
        return {
            "files": [
                {
                    "path": file,
                    "uploadMode": mode[file.endswith(".safetensors")],
                    "shouldIgnore": False,
                    "oid": self.object_id(name, file),
                }
                for file in files
            ]
        }

    def object_id(self, name, file):
        """Shows a client whether a file has changed: git's hash of its content, or the SHA-256 of a large one."""
        content = self.server.files(name).get(file)
        if content is None or file.endswith(".safetensors"):
            return None if content is None else hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def large_file_targets(self, body, name):  # noqa: ARG002
        def actions(oid):
            if oid in self.server.large_files:
                return {}
            return {"actions": {"upload": {"href": f"{self.server.url}/_lfs/{oid}", "header": {}}}}

        objects = json.loads(body)["objects"]
        objects = [{"oid": found["oid"], "size": found["size"], **actions(found["oid"])} for found in objects]
        return {"transfer": "basic", "objects": objects}

    def large_file(self, body, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            raise RefusalError(400, "the content is not what its name says")
        self.server.large_files[oid] = body
        return {}

    def commit(self, body, name):
        self.check_token()
        files = dict(self.server.files(name))
        for line in body.splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header" and value.get("parentCommit") not in (None, self.commit_id(name)):
                raise RefusalError(412, "A commit has happened since. Please refresh and try again.")
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.large_files[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        self.server.repositories[name].append(files)
        commit = self.commit_id(name)
        return {
            "success": True,
            "commitOid": commit,
            "commitUrl": f"{self.server.url}/{name}/commit/{commit}",
            "hookOutput": "",
        }

    def information(self, body, name):  # noqa: ARG002
        if name not in self.server.repositories:
            raise RefusalError(404, "Repository not found", code="RepoNotFound")
        files = [{"rfilename": file} for file in self.server.files(name)]
        return {"id": name, "sha": self.commit_id(name), "tags": [], "private": False, "siblings": files}

    def file(self, body, name, file):  # noqa: ARG002
        content = self.server.files(name).get(file) if name in self.server.repositories else None
        if content is None:
            raise RefusalError(404, "Entry not found", code="EntryNotFound")
        return content, 200

    def commit_id(self, name):
        return hashlib.sha1(f"{name} {len(self.server.repositories.get(name, []))}".encode()).hexdigest()

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def reply(self, content, status=200, code=None, message=None):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        if match := re.match(rf"/{REPOSITORY}/resolve/", self.path):
            self.send_header("X-Repo-Commit", self.commit_id(match["name"]))
        if code:
            self.send_header("X-Error-Code", code)
        if message:
            self.send_header("X-Error-Message", message)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments):
        """Says nothing."""


def faults_of_card(content):
    """What the Hub's documentation of a model card's front matter does not allow, in words."""
    parts = content.split("---\n", 2)
    data = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0] else {}
    faults = [
        f'"{name}" must be {kind.__name__}'
        for name, kind in (
            ("tags", list),
            ("metrics", list),
            ("license", str),
            ("library_name", str),
            ("pipeline_tag", str),
        )
        if not isinstance(data.get(name, kind()), kind)
    ]
    for name in ("datasets", "base_model"):
        values = data.get(name, [])
        values = values if isinstance(values, list) else [values]
        faults += [
            f'"{name}" has no valid name: {value!r}' for value in values if not NAMES.match(str(value))
        ]
    for example in data.get("widget", []):
        if not isinstance(example, dict) or not isinstance(example.get("src"), str):
            faults.append(f'"widget" holds no image: {example!r}')
    try:
        if "model-index" in data:
            model_index_to_eval_results(data["model-index"])
    except (KeyError, TypeError) as error:
        faults.append(f'"model-index" is incomplete: {error!r}')
    return faults


@contextmanager
def loopback_hub():
    hub = LoopbackHub()
    thread = Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
