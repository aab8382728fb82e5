"""A Hub of one's own: the few requests of huggingface_hub that pushing and loading a repository takes, answered in memory."""

import base64
import hashlib
import json
import re
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

REPOSITORY = r"(?P<name>[\w.-]+/[\w.-]+)"


class LoopbackHub(ThreadingHTTPServer):
    """`repositories[name]` is a list of commits, each a dict from file name to bytes."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories = {}
        self.large_files = {}
        self.url = f"http://127.0.0.1:{self.server_port}"

    def files(self, name):
        return self.repositories[name][-1]

    def environment(self, home):
        """Variables for a process that shall see this Hub only, with its caches under `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": "hf_loopback",
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.body()
        for pattern, answer in (
            (r"/api/repos/create", self.create),
            (r"/api/validate-yaml", self.validate),
            (rf"/api/models/{REPOSITORY}/preupload/.*", self.preupload),
            (rf"/{REPOSITORY}\.git/info/lfs/objects/batch", self.large_file_targets),
            (rf"/api/models/{REPOSITORY}/commit/.*", self.commit),
        ):
            if match := re.fullmatch(pattern, self.path.partition("?")[0]):
                return self.reply(answer(body, **match.groupdict()))
        return self.reply({"error": f"POST {self.path}"}, status=404)

    def do_PUT(self):
        self.server.large_files[self.path.rpartition("/")[2]] = self.body()
        self.reply({})

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        if match := re.fullmatch(rf"/{REPOSITORY}/resolve/[^/]+/(?P<file>.+)", path):
            return self.file(**match.groupdict())
        if match := re.fullmatch(rf"/api/models/{REPOSITORY}(/revision/.+)?", path):
            return self.information(match["name"])
        return self.reply({"error": f"GET {self.path}"}, status=404)

    def create(self, body):
        request = json.loads(body)
        name = f"{request.get('organization') or 'me'}/{request['name']}"
        self.server.repositories.setdefault(name, [{}])
        return {"url": f"{self.server.url}/{name}", "name": name, "id": name}

    def validate(self, body):  # noqa: ARG002
        return {"errors": [], "warnings": []}

    def preupload(self, body, name):  # noqa: ARG002
        files = [file["path"] for file in json.loads(body)["files"]]
        mode = {True: "lfs", False: "regular"}
        return {
            "files": [
                {
                    "path": file,
                    "uploadMode": mode[file.endswith(".safetensors")],
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in files
            ]
        }

    def large_file_targets(self, body, name):  # noqa: ARG002
        def target(oid):
            return {"upload": {"href": f"{self.server.url}/_lfs/{oid}", "header": {}}}

        objects = json.loads(body)["objects"]
        return {
            "transfer": "basic",
            "objects": [{"oid": o["oid"], "size": o["size"], "actions": target(o["oid"])} for o in objects],
        }

    def commit(self, body, name):
        files = dict(self.server.files(name))
        for line in body.splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
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

    def information(self, name):
        if name not in self.server.repositories:
            return self.reply({"error": "Repository not found"}, status=404, code="RepoNotFound")
        files = [{"rfilename": file} for file in self.server.files(name)]
        found = {"id": name, "sha": self.commit_id(name), "tags": [], "private": False, "siblings": files}
        return self.reply(found)

    def file(self, name, file):
        content = self.server.files(name).get(file) if name in self.server.repositories else None
        if content is None:
            commit = self.commit_id(name)
            return self.reply({"error": "Entry not found"}, status=404, code="EntryNotFound", commit=commit)
        return self.reply(content, commit=self.commit_id(name))

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

    def reply(self, content, status=200, code=None, commit=None):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        if code:
            self.send_header("X-Error-Code", code)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments):
        """Says nothing."""


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
