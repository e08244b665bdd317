"""A stand-in for the Hugging Face Hub: enough of its API for the real client, over HTTP, in this process.

    with StandInHub() as hub:
        subprocess.run(command, env={**os.environ, **hub.environment(tmp_path)})

Repositories are kept in memory. ``hub.faults`` lists what shall go wrong. Files above ``LFS_FROM`` bytes go by LFS, as
large and binary files do on the Hub; Xet is switched off.
"""

import base64
import hashlib
import itertools
import json
import re
import threading
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath

import yaml

TOKEN = "hf_stand_in"
USER = "tester"
# As the Hub does: what is large or binary goes by LFS.
LFS_FROM = 10_000
_NUMBERS = itertools.count()
_REPO = r"(?P<repo>[^/]+/[^/]+)"


@dataclass
class Fault:
    """What goes wrong, the next ``times`` times that a request fits.

    ``kind`` is a status code (429 with ``Retry-After: 1``), "cut" (the connection is closed in the middle of the
    request's body), or "hang" (no answer until the server stops).
    """

    method: str
    path: str
    kind: int | str
    times: float = 1


@dataclass
class Repository:
    """All of its commits, (id, message, files), and the last one of each branch."""

    private: bool = False
    commits: list[tuple[str, str, dict[str, bytes]]] = field(default_factory=list)
    branches: dict[str, tuple[str, str, dict[str, bytes]]] = field(default_factory=dict)

    def commit(self, message, files, branch="main"):
        oid = hashlib.sha1(f"commit {next(_NUMBERS)}".encode()).hexdigest()
        self.commits.append((oid, message, dict(files)))
        self.branches[branch] = self.commits[-1]
        return oid

    def at(self, revision):
        """Return the id and the files of a branch or commit, or None."""
        known = {**{commit[0]: commit for commit in self.commits}, **self.branches}
        return (known[revision][0], known[revision][2]) if revision in known else None

    @property
    def files(self):
        """Those of the main branch."""
        return self.branches["main"][2]


class StandInHub:
    """The server; a context manager.

    Attributes:
        url: What ``HF_ENDPOINT`` has to be.
        repositories: By kind ("model", "dataset", "space") and name.
        requests: (method, path) of all that came, in order.
        faults: What shall go wrong.
    """

    def __init__(self):
        self.repositories = {}
        self.objects = {}
        self.requests = []
        self.faults = []
        self.lock = threading.RLock()
        self.stopped = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home, token=TOKEN):
        """Return the variables that lead a process to this server, with a cache of its own below ``home``."""
        found = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        found |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", "HF_TOKEN": token or ""}
        return found

    def create(self, kind, name, files=None, private=False):
        """Create a repository unless it exists, and add files to it."""
        with self.lock:
            repository = self.repositories.setdefault((kind, name), Repository(private))
            if not repository.commits:
                repository.commit("initial commit", {".gitattributes": b""})
            if files:
                repository.commit("files", {**repository.files, **files})
        return repository

    def model(self, name):
        """Return the repository of a model."""
        return self.repositories[("model", name)]

    def fault_for(self, method, path):
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: StandInHub

    def log_message(self, *_):
        """Keep quiet."""

    def do_GET(self):
        self._answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def _answer(self):
        path, _, query = self.path.partition("?")
        self.query = urllib.parse.parse_qs(query)
        with self.hub.lock:
            self.hub.requests.append((self.command, path))
        fault = self.hub.fault_for(self.command, path)
        length = int(self.headers.get("Content-Length") or 0)
        if fault and fault.kind == "cut":
            self.rfile.read(length // 2)
            self.close_connection = True
            self.connection.close()
            return
        if "chunked" in (self.headers.get("Transfer-Encoding") or ""):
            self.body = b"".join(iter(self._chunk, b""))
        else:
            self.body = self.rfile.read(length)
        if fault and fault.kind == "hang":
            self.hub.stopped.wait()
            self.close_connection = True
            return
        if fault:
            wait = {"Retry-After": "1"} if fault.kind == 429 else {}
            self._send(fault.kind, {"error": f"Fault on demand: {fault.kind}"}, wait)
            return
        for method, pattern, answer in _ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method.split("|"):
                parts = {name: urllib.parse.unquote(value) for name, value in found.groupdict(default="").items()}
                with self.hub.lock:
                    answer(self, **parts)
                return
        self._send(404, {"error": f"The stand-in does not know {self.command} {path}"})

    def _chunk(self):
        data = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return data

    def _send(self, status, content, headers=None):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {
            "Content-Length": str(len(body)),
            "Content-Type": "application/json",
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _may_write(self):
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if not allowed:
            self._send(401, {"error": "Invalid username or password."}, {"X-Error-Message": "Invalid credentials"})
        return allowed

    def _found(self, kind, repo, revision="main"):
        """Return the repository and the revision, or send what is missing."""
        repository = self.hub.repositories.get((kind, repo))
        if repository is None:
            self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        at = repository.at(revision)
        if at is None:
            self._send(404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"})
        return at and (repository, *at)

    def whoami(self):
        if self._may_write():
            self._send(200, {"type": "user", "name": USER, "auth": {"accessToken": {"role": "write"}}, "orgs": []})

    def create(self):
        if not self._may_write():
            return
        asked = json.loads(self.body)
        kind, name = asked.get("type") or "model", f"{asked.get('organization') or USER}/{asked['name']}"
        url = f"{self.hub.url}/{'' if kind == 'model' else kind + 's/'}{name}"
        known = (kind, name) in self.hub.repositories
        self.hub.create(kind, name, private=asked.get("visibility") == "private")
        self._send(409 if known else 200, {"url": url, "id": name, "error": "You already created this repo"})

    def branch(self, kind, repo, branch):
        if self._may_write() and (found := self._found(kind, repo)):
            known = branch in found[0].branches
            found[0].branches.setdefault(branch, found[0].branches["main"])
            self._send(409 if known else 200, {"error": "Reference already exists"} if known else {})

    def validate_yaml(self):
        """Refuse a licence that is none, and numbers that JSON has not: two of the Hub's rules."""
        _, _, rest = json.loads(self.body)["content"].partition("---\n")
        metadata = yaml.safe_load(rest.partition("\n---")[0]) or {}
        errors = []
        if metadata.get("license", "mit") not in ("mit", "apache-2.0"):
            errors.append({"message": '"license" must be one of [apache-2.0, mit]'})
        if "nan" in json.dumps(metadata, default=str).lower().replace("balancemix", ""):
            errors.append({"message": '"metrics[0].value" must be a number'})
        self._send(400 if errors else 200, {"errors": errors, "warnings": []})

    def preupload(self, kind, repo, revision):
        if self._may_write() and self._found(kind, repo, revision):
            files = json.loads(self.body)["files"]
            modes = ["lfs" if file["size"] >= LFS_FROM else "regular" for file in files]
            answers = [
                {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
                for file, mode in zip(files, modes, strict=True)
            ]
            self._send(200, {"files": answers})

    def lfs_batch(self, repo, prefix=""):
        if not self._may_write():
            return
        answers = []
        for asked in json.loads(self.body)["objects"]:
            answers.append({"oid": asked["oid"], "size": asked["size"]})
            if asked["oid"] not in self.hub.objects:
                answers[-1]["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}", "header": {}}}
        self._send(200, {"transfer": "basic", "objects": answers})

    def lfs_upload(self, oid):
        right = hashlib.sha256(self.body).hexdigest() == oid
        if right:
            self.hub.objects[oid] = self.body
        self._send(200 if right else 400, {})

    def commit(self, kind, repo, revision):
        if not self._may_write() or (found := self._found(kind, repo, revision)) is None:
            return
        files, message = dict(found[2]), ""
        for line in self.body.splitlines():
            step = json.loads(line)
            value = step["value"]
            if step["key"] == "header":
                message = value["summary"]
            elif step["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif step["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    self._send(400, {"error": f"LFS object {value['oid']} was never uploaded"})
                    return
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif step["key"] in ("deletedFile", "deletedFolder"):
                gone = value["path"]
                files = {
                    name: data for name, data in files.items() if name != gone and not name.startswith(gone + "/")
                }
        commit = found[0].commit(message, files, revision)
        url = f"{self.hub.url}/{repo}/commit/{commit}"
        self._send(200, {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    def info(self, kind, repo, revision):
        if found := self._found(kind, repo, revision or "main"):
            repository, commit, files = found
            siblings = [{"rfilename": path, "size": len(data)} for path, data in sorted(files.items())]
            dates = dict.fromkeys(("lastModified", "createdAt"), "2024-01-01T00:00:00.000Z")
            facts = {"id": repo, "modelId": repo, "sha": commit, "private": repository.private, "siblings": siblings}
            counts = {"tags": [], "downloads": 0, "likes": 0, "gated": False, "disabled": False}
            self._send(200, {**facts, **dates, **counts})

    def tree(self, kind, repo, revision, path):
        if found := self._found(kind, repo, revision):
            prefix = f"{path}/" if path else ""
            below = {name: data for name, data in found[2].items() if name.startswith(prefix)}
            if path and not below:
                self._send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
                return
            recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
            folders = {str(parent) for name in below for parent in PurePosixPath(name).parents} - {".", path}
            folders = {name for name in folders if name.startswith(prefix)}
            entries = [_folder(name) for name in sorted(folders) if recursive or "/" not in name[len(prefix) :]]
            entries += [_file(n, d) for n, d in sorted(below.items()) if recursive or "/" not in n[len(prefix) :]]
            self._send(200, entries)

    def paths_info(self, kind, repo, revision):
        if found := self._found(kind, repo, revision):
            sent = urllib.parse.parse_qs(self.body.decode()) if self.body[:1] != b"{" else json.loads(self.body)
            wanted = sent["paths"] if isinstance(sent["paths"], list) else [sent["paths"]]
            files = [_file(path, found[2][path]) for path in wanted if path in found[2]]
            folders = [_folder(path) for path in wanted if any(name.startswith(f"{path}/") for name in found[2])]
            self._send(200, files + folders)

    def resolve(self, repo, revision, path, prefix=""):
        kind = prefix.rstrip("/").removesuffix("s") or "model"
        if not (found := self._found(kind, repo, revision)):
            return
        _, commit, files = found
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if path not in files:
            self._send(404, {"error": "Entry not found"}, {**headers, "X-Error-Code": "EntryNotFound"})
            return
        data = files[path]
        headers["ETag"] = f'"{_file(path, data)["oid"]}"'
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not wanted:
            self._send(200, data, headers)
            return
        start, stop = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
        if start >= len(data):
            self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        headers["Content-Range"] = f"bytes {start}-{stop}/{len(data)}"
        self._send(206, data[start : stop + 1], headers)


def _file(path, data):
    entry = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    if len(data) >= LFS_FROM:
        entry["oid"] = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": entry["oid"], "size": len(data), "pointerSize": 130}
    return entry


def _folder(path):
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}


_KIND = r"/api/(?P<kind>model|dataset|space)s/" + _REPO
_PREFIX = r"/(?P<prefix>datasets/|spaces/)?" + _REPO
_ROUTES = [
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("POST", _KIND + r"/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ("POST", _PREFIX + r"\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", _Handler.lfs_upload),
    ("POST", _KIND + r"/branch/(?P<branch>[^/]+)", _Handler.branch),
    ("POST", _KIND + r"/commit/(?P<revision>[^/]+)", _Handler.commit),
    ("GET", _KIND + r"(?:/revision/(?P<revision>[^/]+))?", _Handler.info),
    ("GET", _KIND + r"/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", _Handler.tree),
    ("POST", _KIND + r"/paths-info/(?P<revision>[^/]+)", _Handler.paths_info),
    ("GET|HEAD", _PREFIX + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
]
