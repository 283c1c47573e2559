"""A stand-in for the Hugging Face hub on loopback: the calls that uploading and downloading a small folder take."""

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40


@dataclass
class Hub:
    """What the hub holds, and what it was asked."""

    token: str
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Content by path, of each repository."""
    objects: dict[str, bytes] = field(default_factory=dict)
    """Large files by SHA-256, as they came in by PUT."""
    messages: list[str] = field(default_factory=list)
    private: dict[str, bool] = field(default_factory=dict)


class HubServer(ThreadingHTTPServer):
    """Serves a `Hub` until it is closed."""

    daemon_threads = True

    def __init__(self, hub: Hub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, status: int, body: object = None, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.server.hub.token}"

    def do_POST(self) -> None:
        body, hub, parts = self._body(), self.server.hub, urlsplit(self.path).path.strip("/").split("/")
        if not self._allowed():
            return self._answer(401, {"error": "Invalid username or password."})
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            hub.private[repo] = asked.get("visibility") == "private" or asked.get("private") is True
            hub.files.setdefault(repo, {})
            return self._answer(200, {"url": f"{self.server.url}/{repo}", "id": repo})
        if parts[0] == "api" and parts[4:5] == ["preupload"]:
            files = json.loads(body)["files"]
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".pt")) else "regular",
                    "shouldIgnore": False,
                }
                for file in files
            ]
            return self._answer(200, {"files": modes})
        if parts[-3:] == ["info", "lfs", "objects"] or parts[-4:] == ["info", "lfs", "objects", "batch"]:
            objects = [
                {**item, "actions": {"upload": {"href": f"{self.server.url}/objects/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            return self._answer(200, {"transfer": "basic", "objects": objects})
        if parts[0] == "api" and parts[4:5] == ["commit"]:
            self._commit(f"{parts[2]}/{parts[3]}", body)
            url = f"{self.server.url}/{parts[2]}/{parts[3]}/commit/{COMMIT}"
            return self._answer(200, {"commitUrl": url, "commitOid": COMMIT, "hookOutput": ""})
        if parts == ["api", "validate-yaml"]:
            return self._answer(200, {"errors": [], "warnings": []})
        return self._answer(404, {"error": f"no such call: POST {self.path}"})

    def _commit(self, repo: str, body: bytes) -> None:
        hub = self.server.hub
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                hub.messages.append(value["summary"])
            elif entry["key"] == "file":
                hub.files[repo][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                hub.files[repo][value["path"]] = hub.objects[value["oid"]]

    def do_PUT(self) -> None:
        body = self._body()
        oid = self.path.rsplit("/", 1)[-1]
        if hashlib.sha256(body).hexdigest() != oid:
            return self._answer(400, {"error": "content and SHA-256 differ"})
        self.server.hub.objects[oid] = body
        return self._answer(200)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, parts = self.server.hub, [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[0] == "api" and parts[1] == "models":
            repo = f"{parts[2]}/{parts[3]}"
            if repo not in hub.files:
                return self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            siblings = [{"rfilename": path} for path in hub.files[repo]]
            return self._answer(200, {"id": repo, "sha": COMMIT, "siblings": siblings})
        if len(parts) > 4 and parts[2] == "resolve":
            content = hub.files.get(f"{parts[0]}/{parts[1]}", {}).get("/".join(parts[4:]))
            if content is None:
                return self._answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            tag = f'"{hashlib.sha256(content).hexdigest()}"'
            return self._answer(200, content, {"ETag": tag, "X-Repo-Commit": COMMIT})
        return self._answer(404, {"error": f"no such call: GET {self.path}"})
