"""A trainer's pushes to the Hub: beside the training, complete, and never in its way."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterable
from concurrent.futures import Future, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from hf_balancemix.hub.contents import CARD, Contents, checkpoint_contents, model_contents
from hf_balancemix.hub.push import WITH_CHECKPOINTS, Destination, Pushed, PushError, Upload, push
from hf_balancemix.training.checkpoints import complete_checkpoints, missing_parts

logger = logging.get_logger(__name__)

_TO_CREATE = 30.0  # seconds that a run waits for its repository before it begins without one
# An underscore keeps it out of what other tools push from this folder.
_STAGED = "_push-"
_LAST = "last-checkpoint"  # as the stock Trainer has it


def run_contents(folder: str | os.PathLike[str], strategy: HubStrategy | str) -> Contents:
    """Return what the Hub has of a run that is over: its model, and the checkpoints that the strategy asks for.

    Args:
        folder: Of the run, or a checkpoint.
        strategy: ``hub_strategy``; with ``checkpoint`` the last one goes along, with ``all_checkpoints`` each.

    Raises:
        ValueError: If there is no model in the folder.
    """
    return _with_checkpoints(model_contents(folder), _to_push(Path(folder), strategy), strategy)


def _to_push(folder: Path, strategy: HubStrategy | str) -> list[Path]:
    """Return the checkpoints of a run that belong on the Hub."""
    if strategy not in WITH_CHECKPOINTS:
        return []
    found = [folder] if not missing_parts(folder) else complete_checkpoints(folder)
    return found if strategy == HubStrategy.ALL_CHECKPOINTS else found[-1:]


def _with_checkpoints(model: Contents, checkpoints: Iterable[Path], strategy: HubStrategy | str) -> Contents:
    """Add whole checkpoints to what makes a model."""
    files, texts = dict(model.files), dict(model.texts)
    for path in checkpoints:
        whole = checkpoint_contents(path, _LAST if strategy == HubStrategy.CHECKPOINT else path.name)
        files, texts = files | whole.files, texts | whole.texts
    return Contents(files, texts)


def upload_limit(contents: Contents, args: Any) -> float:
    """Return for how many seconds an upload is waited for: by its size, but less than other processes would wait."""
    return min(contents.seconds(), args.ddp_timeout / 2) if args.world_size > 1 else contents.seconds()


class Pushing:
    """Pushes what a trainer saves, one push at a time, each by a process of its own.

    A push that fails during the training is warned about, the first time; the training goes on. What is missing on the
    Hub is pushed again at the end. The files of a push are linked aside first: the training may replace or remove its
    own meanwhile.

    Args:
        trainer: The trainer; only its first process may push.
        token: Takes the place of ``args.hub_token``.
        private: Takes the place of ``args.hub_private_repo``.

    Attributes:
        destination: Where to; its name is complete once the Hub has answered.
        final_follows: Whether the end of the training leaves what is missing to a push that comes after it.
        unpushed: What to tell the user if the Hub lacks the last state, with the command that pushes it; else None.

    Raises:
        ValueError: If the repository's name is not one.
    """

    def __init__(self, trainer: Any, token: str | None = None, private: bool | None = None) -> None:
        args = trainer.args
        self.trainer = trainer
        self.folder = Path(args.output_dir)
        self.destination = Destination(
            args.hub_model_id or self.folder.absolute().name,
            args.hub_private_repo if private is None else private,
            args.hub_revision,
            token or args.hub_token,
        )
        trainer.hub_model_id = self.destination.repo_id
        self.final_follows = False
        self.unpushed: str | None = None
        self._warned = False
        self._running: Future[Pushed] | None = None
        self._on_hub: set[str] = set()  # names of whole checkpoints
        self._last: Path | None = None  # checkpoint that was saved last
        self._pushed: Path | None = None  # folder whose model is on the Hub

    def create_repository(self) -> None:
        """Create the repository, or find it; its name lacks the user still where the Hub does not answer."""
        for left in self.folder.glob(f"{_STAGED}*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        try:
            self._named(push(Contents({}), self.destination, "", _TO_CREATE))
        except PushError as error:
            self._warn(error)

    def push_checkpoint(self, checkpoint: str) -> None:
        """Begin to push a checkpoint's model, with some strategies the whole of it; not if a push is under way."""
        self._last = Path(checkpoint)
        state, args = self.trainer.state, self.trainer.args
        if self._busy and not args.hub_always_push:
            return
        unit = f"step {state.global_step}" if args.save_strategy == "steps" else f"epoch {int(state.epoch or 0)}"
        self._begin(self._last, [self._last] * (self._strategy in WITH_CHECKPOINTS), f"Training in progress, {unit}")

    def finish(self) -> None:
        """Wait for the push under way; push the last or best checkpoint if the Hub lacks it, or say how to do it."""
        if self.final_follows or self._last is None:
            return
        self._wait()
        state, args = self.trainer.state, self.trainer.args
        best = args.load_best_model_at_end and state.best_model_checkpoint
        model = Path(best) if best else self._last
        if model == self._pushed:
            return
        self._begin(model, self._missing(), f"Training in progress, {'best' if best else 'last'} checkpoint")
        if error := self._wait():
            self._report(error, model)

    def push_output(self, message: str, blocking: bool = True, **changes: Any) -> Pushed | Future[Pushed] | None:
        """Push the final model, and the checkpoints that the Hub lacks.

        Args:
            message: Of the commit.
            blocking: Whether to wait for the end of it, for as long as its size allows for.
            **changes: Of the destination, from now on; None changes nothing.

        Returns:
            What became of it, or None if that failed (``unpushed`` says why); a ``Future`` unless blocking.
        """
        self._wait()
        self.destination = replace(self.destination, **{name: v for name, v in changes.items() if v is not None})
        running = self._begin(self.folder, self._missing(), message, final=True, blocking=blocking)
        if not blocking:
            return running
        if self._wait():
            return None
        return running.result()

    @property
    def _strategy(self) -> HubStrategy:
        return self.trainer.args.hub_strategy

    def _missing(self) -> list[Path]:
        """Return the checkpoints that belong on the Hub and are not there."""
        return [path for path in _to_push(self.folder, self._strategy) if path.name not in self._on_hub]

    @property
    def _busy(self) -> bool:
        return self._running is not None and not self._running.done()

    def _begin(
        self, model: Path, checkpoints: Iterable[Path], message: str, final: bool = False, blocking: bool = True
    ) -> Future[Pushed]:
        """Link aside what is to be pushed and start the upload, behind the one that may be under way."""
        future: Future[Pushed] = Future()
        previous, checkpoints = self._running, list(checkpoints)

        def fail(error: Exception) -> None:
            failure = error
            if not isinstance(error, PushError):  # its files were removed from outside, for instance
                failure = PushError(self.destination.repo_id, f"it broke off ({error})", "Push it later")
            assert isinstance(failure, PushError)
            if final:
                self._report(failure, model)
            else:
                self._warn(failure)
            future.set_exception(failure)

        try:
            staged = tempfile.TemporaryDirectory(prefix=_STAGED, dir=self.folder, ignore_cleanup_errors=True)
            contents = self._stage(model, checkpoints, Path(staged.name))
            upload = Upload()  # last: nobody would end it
        except (PushError, OSError, ValueError) as error:  # a full disk, or a checkpoint removed from outside
            fail(error)
            if not self._busy:
                self._running = future
            return future
        self._running = future

        def work() -> None:
            if previous is not None:
                wait([previous])
            try:
                with staged:
                    limit = upload_limit(contents, self.trainer.args)
                    pushed = upload.run(contents, self.destination, message, limit)
            except Exception as error:
                fail(error)
                return
            self._named(pushed)
            self._pushed = model
            self._on_hub.update(path.name for path in checkpoints)
            if final:
                self.unpushed = None
            future.set_result(pushed)

        # A push that nobody waits for keeps the process alive until it is done.
        threading.Thread(target=work, daemon=blocking).start()
        return future

    def _stage(self, model: Path, checkpoints: list[Path], aside: Path) -> Contents:
        contents = _with_checkpoints(model_contents(model), checkpoints, self._strategy)
        if (self.folder / CARD).is_file():
            contents.texts[CARD] = (self.folder / CARD).read_text(encoding="utf-8")
        return Contents({name: _link(path, aside / name) for name, path in contents.files.items()}, contents.texts)

    def _wait(self) -> PushError | None:
        """Wait until nothing is under way; every upload has its limit. Return what went wrong with the last one."""
        error = None if self._running is None else self._running.exception()
        assert error is None or isinstance(error, PushError)
        return error

    def _named(self, pushed: Pushed) -> None:
        self.destination = replace(self.destination, repo_id=pushed.repo_id)
        self.trainer.hub_model_id = pushed.repo_id

    def _warn(self, error: PushError) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(f"{error} The training goes on; what is missing on the Hub is pushed again at the end.")

    def _report(self, error: PushError, folder: Path) -> None:
        self.unpushed = (
            f"The model is in {folder}, but not on the Hub: {error.reason}. {error.remedy}; then push it with\n"
            f"  {self.destination.command(folder, self._strategy)}"
        )
        if not self.final_follows:
            logger.warning(self.unpushed)


def _link(path: str, aside: Path) -> str:
    """Give a file a second name, or copy it where there are no hard links."""
    aside.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, aside)
    except OSError:
        shutil.copyfile(path, aside)
    return str(aside)
