"""Pushing to the Hub, by an upload that can be given up."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from transformers.trainer_utils import HubStrategy

from hf_balancemix.hub.card import HERE
from hf_balancemix.hub.contents import CARD, Contents
from hf_balancemix.messages import mistake

# Lines of the client that say only that it tries again.
_PATIENCE = ("Retrying", "Rate limited")
_SCRIPT = Path(__file__).with_name("upload.py")
WITH_CHECKPOINTS = (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)
# Read before `prepare_hub` may switch a process without a connection to offline mode: it may be back at the end.
_OFFLINE = os.environ.get("HF_HUB_OFFLINE")


@dataclass(frozen=True)
class Destination:
    """Where to push.

    Attributes:
        repo_id: Name on the Hub, with or without the user or organisation in front.
        private: Whether the repository is private if it does not exist yet; None for the account's default.
        revision: Branch; it is created if it does not exist.
        token: Access token; the one that is logged in with, unless given.
    """

    repo_id: str
    private: bool | None = None
    revision: str | None = None
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        try:
            validate_repo_id(self.repo_id)
        except HFValidationError as error:
            raise mistake(
                "a name on the Hub such as user/model, of letters, digits, '-', '_' and '.'",
                repr(self.repo_id),
                "Choose another one with `hub_model_id`",
            ) from error

    def command(self, folder: str | os.PathLike[str], strategy: HubStrategy | str = HubStrategy.END) -> str:
        """Return the command that pushes a folder here, with the checkpoints that a strategy asks for."""
        words = ["hf-balancemix", "push", os.fspath(folder), self.repo_id]
        words += ["--private"] * bool(self.private) + (["--revision", self.revision] if self.revision else [])
        kind = HubStrategy(strategy)
        words += ["--hub_strategy", kind.value] if kind in WITH_CHECKPOINTS else []
        return shlex.join(words)


@dataclass(frozen=True)
class Pushed:
    """What became of a push: full name and address of the repository, address and id of the commit, if any."""

    repo_id: str
    url: str
    commit_url: str | None = None
    oid: str | None = None


class PushError(Exception):
    """A push that did not succeed.

    Attributes:
        reason: What happened, to stand behind "found that".
        remedy: What to do.
    """

    def __init__(self, repo_id: str, reason: str, remedy: str) -> None:
        super().__init__(f"Expected to push to {repo_id}, found that {reason}. {remedy}.")
        self.reason, self.remedy = reason, remedy


class Upload:
    """A process that is ready to upload: :meth:`run` gives it its job.

    Start it in the thread that starts other processes too, such as a DataLoader's workers: they would inherit what
    connects this one while it starts, and keep it waiting for as long as they live.

    Args:
        quiet: Whether to show no progress.

    Raises:
        PushError: If no process can be started.
    """

    def __init__(self, quiet: bool = True) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        environment |= {"HF_HUB_OFFLINE": _OFFLINE} if _OFFLINE else {}
        environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1"} if quiet else {}
        try:
            self._errors = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - its position is the process's too
            self._process = subprocess.Popen(
                [sys.executable, str(_SCRIPT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors if quiet else None,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches a whole group; this process decides
            )
        except OSError as error:  # no memory for another process, no space for its errors
            raise PushError("the Hub", f"no process can be started ({error})", "Push it later") from error

    def run(self, contents: Contents, destination: Destination, message: str, limit: float | None = None) -> Pushed:
        """Create the repository unless it exists, and commit everything at once.

        Args:
            contents: What to commit; nothing only creates the repository.
            destination: Where.
            message: Of the commit.
            limit: Seconds after which it is given up; None for none.

        Raises:
            PushError: If that fails, for whatever reason.
        """
        job = {
            "files": contents.files,
            "texts": contents.texts,
            "card": CARD,
            "unnamed": HERE,
            "message": message,
            "repo_id": destination.repo_id,
            "private": destination.private,
            "revision": destination.revision,
            "token": destination.token or get_token(),
        }
        given_up = threading.Event()

        def give_up() -> None:  # it ends every wait below, whatever it is that hangs
            given_up.set()
            self._process.kill()

        timer = threading.Timer(limit or 0, give_up)
        timer.daemon = True
        if limit is not None:
            timer.start()
        try:
            with self._process, self._errors:
                try:
                    answer = self._ask(job)
                finally:
                    timer.cancel()
                    self._process.kill()
                    self._process.wait()
                said = self._last_words()
        except OSError as error:
            raise PushError(destination.repo_id, f"it broke off ({error})", "Push it later") from error
        if answer is None:
            reason, remedy = f"its process ended with status {self._process.returncode}{said}", "Push it later"
            if given_up.is_set():
                reason = f"it was not done after {limit:.0f} seconds{said}"
                remedy = "Check the connection, or push it later"
            raise PushError(destination.repo_id, reason, remedy)
        if "error" in answer:
            raise PushError(destination.repo_id, *_explain(answer, bool(job["token"])))
        return Pushed(**answer)

    def _ask(self, job: Mapping[str, Any]) -> dict[str, Any] | None:
        """Give the job and wait for the answer; None if the process died. Its input stays open: that would end it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            return None
        line = self._process.stdout.readline()
        return dict(json.loads(line)) if line.endswith(b"\n") else None

    def _last_words(self) -> str:
        """Return in brackets what the client said last of its troubles, if it did."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()
        telling = [line.strip() for line in lines if line.strip() and not line.startswith(_PATIENCE)]
        return f" ({telling[-1]})" if telling else ""


def push(
    contents: Contents, destination: Destination, message: str, limit: float | None = None, quiet: bool = True
) -> Pushed:
    """Start an :class:`Upload` and wait for it; arguments and errors are those of its methods."""
    return Upload(quiet).run(contents, destination, message, limit)


def _explain(answer: Mapping[str, Any], has_token: bool) -> tuple[str, str]:
    """Return reason and remedy for an answer with an error."""
    status, text = answer["status"], str(answer["error"]).rstrip(".")
    if answer["card"]:
        return f"the Hub refuses the card ({text})", "Correct the lines at the top of its README.md"
    log_in = "Log in with `hf auth login`, or set HF_TOKEN to a token with write permission"
    if status is None:
        return f"it broke off ({text})", f"Check the connection to {answer['endpoint']}"
    if status in (401, 403):
        said = "does not accept the access token" if has_token else "wants an access token, and there is none"
        return f"the Hub {said} ({status}: {text})", log_in
    later = status == 429 or status >= 500
    return f"the Hub answered {status} ({text})", "Try again later" if later else "Check name and branch"
