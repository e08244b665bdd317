"""The process that uploads: reads a job, answers with a line of JSON, imports nothing but ``huggingface_hub``.

Run as a file, not as a module, which would import the whole package. It is a process because nothing else can be given
up: requests of huggingface_hub (2.4) have no time limit, and Python waits for its threads before it ends.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError


def _end_with_the_other() -> None:
    """End when the process that gave the job does, however it does: its end of the pipe is closed then."""
    sys.stdin.buffer.read()
    os._exit(1)


def _upload(job: dict[str, Any]) -> dict[str, Any]:
    """Create the repository unless it exists, and commit all files at once: no half push is ever seen."""
    api = HfApi(token=job["token"])
    created = api.create_repo(job["repo_id"], private=job["private"], exist_ok=True)
    answer = {"repo_id": created.repo_id, "url": str(created), "commit_url": None, "oid": None}
    texts = dict(job["texts"])
    if job["card"] in texts:  # only now is the name known in full
        texts[job["card"]] = texts[job["card"]].replace(job["unnamed"], f'model="{created.repo_id}"')
    contents: dict[str, Any] = job["files"] | {name: text.encode() for name, text in texts.items()}
    if not contents:
        return answer
    revision = job["revision"]
    if revision and not revision.startswith("refs/"):
        api.create_branch(created.repo_id, branch=revision, exist_ok=True)
    commit = api.create_commit(
        created.repo_id,
        [CommitOperationAdd(name, content) for name, content in sorted(contents.items())],
        commit_message=job["message"],
        revision=revision,
    )
    return answer | {"commit_url": commit.commit_url, "oid": commit.oid}


def main() -> None:
    """Do the job and answer."""
    job = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_the_other, daemon=True).start()
    try:
        answer = _upload(job)
    except Exception as error:  # whatever it is, the other process says it
        response = error.response if isinstance(error, HfHubHTTPError) else None
        status = getattr(response, "status_code", None)
        refused = isinstance(error, ValueError) and "README.md" in str(error)  # its metadata
        lines = str(error).split("\n")
        said = [getattr(error, "server_message", None), " ".join(str(error).split()) if refused else lines[0].strip()]
        text = next(filter(None, said), type(error).__name__)
        answer = {"error": text[:2000], "status": status, "card": refused, "endpoint": constants.ENDPOINT}
    print(json.dumps(answer))  # noqa: T201
    sys.stdout.flush()
    os._exit(0)  # threads that still hang are of no interest


if __name__ == "__main__":
    main()
