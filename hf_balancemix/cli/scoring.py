"""What the commands that score images share: their options, the device, the message of a full one."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def add_scoring_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how images are read and scored."""
    parser.add_argument(
        "--batch_size",
        type=lambda text: _at_least(1, text),
        default=32,
        metavar="N",
        help="Images per step (default: %(default)s).",
    )
    parser.add_argument(
        "--num_workers",
        type=lambda text: _at_least(0, text),
        default=0,
        metavar="N",
        help="Processes that read images (default: %(default)s, only this one).",
    )
    parser.add_argument(
        "--device",
        default="auto",
        help="cpu, cuda, cuda:1, mps, ... (default: %(default)s, an accelerator if there is one).",
    )
    parser.add_argument(
        "--on_bad_image",
        choices=("raise", "skip"),
        default="raise",
        help="What to do about an image that cannot be read (default: %(default)s).",
    )


def find_device(name: str) -> torch.device:
    """Return the device of that name; "auto" is the accelerator, or the CPU where there is none.

    Raises:
        ValueError: If there is no such device.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    kinds = ["cpu", *([accelerator.type] if accelerator else [])]
    if device is None or device.type not in kinds:
        raise ValueError(
            f"Expected as --device auto or a device of this machine ({', '.join(kinds)}), found {name!r}. Leave it "
            "out for the fastest one."
        )
    if device.type != "cpu" and (device.index or 0) >= torch.accelerator.device_count():
        raise ValueError(
            f"Expected as --device one of the {torch.accelerator.device_count()} devices of this machine, counted "
            f"from 0, found {name!r}. Leave the number out for the first one."
        )
    return device


@contextmanager
def clear_out_of_memory(batch_size: int, device: torch.device) -> Iterator[None]:
    """Say what to do where so many images do not fit into the memory of a device.

    Raises:
        ValueError: In place of ``torch.OutOfMemoryError``.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"Expected {batch_size} images at once to fit into the memory of {device}, found that they do not. Lower "
            "--batch_size."
        ) from error


def _at_least(minimum: int, text: str) -> int:
    if not text.isdecimal() or int(text) < minimum:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least {minimum}, found {text!r}")
    return int(text)
