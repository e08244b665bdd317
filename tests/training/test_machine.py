"""Processes of a machine: an error of one is known to all, and nothing is left on the disk.

With several processes: `tests/distributed/test_refresh.py`.
"""

import tempfile
from types import SimpleNamespace

import pytest
import torch

from hf_balancemix.training import machine
from hf_balancemix.training.machine import attempt, gather_objects, machine_of, mapped

ALONE = SimpleNamespace(world_size=1, process_index=0)


class AwkwardError(Exception):
    """Cannot be rebuilt from its arguments."""

    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


def test_a_process_alone_is_the_first_of_its_machine():
    found = machine_of(ALONE)
    assert (found.index, found.count) == (0, 1)
    assert machine_of(SimpleNamespace(**vars(ALONE))) is found
    assert found.once(lambda: 7) == 7
    assert gather_objects("x", ALONE) == ["x"]


def test_errors_are_raised_as_they_were():
    result, error = attempt(lambda: 1 / 0)
    assert result is None
    with pytest.raises(ZeroDivisionError) as caught:
        gather_objects(None, ALONE, error)
    assert caught.value is error
    with pytest.raises(AwkwardError, match="a b"):
        machine_of(ALONE).once(lambda: (_ for _ in ()).throw(AwkwardError("a", "b")))


@pytest.mark.parametrize("error", [AwkwardError("a", "b"), type("Local", (Exception,), {})("a b")])
def test_errors_that_cannot_travel_are_told(error):
    assert str(machine._portable(error)) == f"{type(error).__name__}: a b"
    fine = ValueError("x")
    assert machine._portable(fine) is fine
    assert machine._portable(None) is None


def test_what_is_mapped_outlives_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with machine_of(ALONE).folder() as folder:
        (folder / "numbers").write_bytes(torch.arange(5).numpy().tobytes())
        (folder / "none").write_bytes(b"")
        first, second = (mapped(folder / "numbers", torch.int64) for _ in range(2))
        assert mapped(folder / "none", torch.int32).shape == (0,)
    assert list(tmp_path.iterdir()) == []
    first[2] = 70
    assert second.tolist() == [0, 1, 70, 3, 4]


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_an_error_leaves_no_folder(tmp_path, monkeypatch, error):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(error, match="x"), machine_of(ALONE).folder():
        raise error("x")
    assert list(tmp_path.iterdir()) == []


def test_no_folder_for_temporary_files_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(OSError, match="Expected room for the labels .* set TMPDIR"), machine_of(ALONE).folder():
        raise AssertionError
