"""Labels as the list of their positives are those of the table, and the table is never made."""

import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from hf_balancemix.data import sparse_labels as module
from hf_balancemix.data.columns import encode_labels
from hf_balancemix.data.sparse_labels import sparse_labels
from hf_balancemix.recipe import job
from hf_balancemix.recipe.job import labels_digest

NAMES = tuple("abcde")
TABLE = np.random.default_rng(0).integers(0, 2, (500, 5))
TABLE[7] = 0


def written(kind):
    """The table as a column of each kind; the rest are options to read it with."""
    lists = [np.flatnonzero(row).tolist() for row in TABLE]
    if kind == "ids":
        return {"labels": lists}, {"class_names": NAMES}
    if kind == "repeated":
        return {"labels": [row[::-1] + row for row in lists]}, {"class_names": NAMES}
    if kind == "names":
        return {"tags": [[NAMES[k] for k in row] for row in lists]}, {}
    if kind == "text":
        return {"tags": ["|".join(NAMES[k] for k in row) for row in lists]}, {}
    if kind == "multi_hot":
        return {"labels": TABLE.tolist()}, {"class_names": NAMES}
    return {name: TABLE[:, k].tolist() for k, name in enumerate(NAMES)}, {"label_column": NAMES}


@pytest.mark.parametrize("kind", ["ids", "repeated", "names", "text", "multi_hot", "columns"])
def test_sparse_labels_are_the_table(kind, monkeypatch):
    monkeypatch.setattr(module, "_ROWS", 64)
    monkeypatch.setattr(module, "_VALUES", 64)
    columns, how = written(kind)
    dataset = datasets.Dataset.from_dict(columns).select(range(3, 500))
    table = encode_labels(dataset, **how)
    labels, names = sparse_labels(dataset, **how)
    assert np.array_equal(table.labels, TABLE[3:])
    assert names == table.class_names == NAMES
    assert torch.equal(labels.dense(slice(None)), torch.from_numpy(table.labels))
    assert labels.counts.tolist() == table.labels.sum(axis=0).tolist()


def test_bad_label_names_its_row_of_the_whole_set(monkeypatch):
    monkeypatch.setattr(module, "_ROWS", 2)
    dataset = datasets.Dataset.from_dict({"labels": [["a"], ["b"], ["a"], ["x"]]})
    with pytest.raises(ValueError, match=r"'x' in row 3\b"):
        sparse_labels(dataset, class_names=("a", "b"))


@pytest.mark.parametrize("together", [1, 40, 2**24])
def test_digest_is_that_of_the_table(together, monkeypatch):
    """Of files that are there already: a digest of other parts would make every finished run another one."""
    monkeypatch.setattr(job, "_TOGETHER", together)
    labels, names = sparse_labels(datasets.Dataset.from_dict({"labels": TABLE.tolist()}), class_names=NAMES)
    test = np.eye(5, dtype=np.int8)
    assert labels_digest(names, labels, test) == DIGEST
    other = sparse_labels(datasets.Dataset.from_dict({"labels": TABLE[::-1].tolist()}), class_names=NAMES)[0]
    assert labels_digest(names, other, test) != DIGEST


DIGEST = "0fc57a912aa52cdf"

READ = """
import datasets, numpy as np, pyarrow as pa
from hf_balancemix.benchmark.figures import peak_memory
from hf_balancemix.data.columns import find_label_format
from hf_balancemix.data.folder import as_label_lists
from hf_balancemix.data.sparse_labels import sparse_labels
from hf_balancemix.recipe.job import labels_digest

n, k = 200_000, 10_000
lists = pa.ListArray.from_arrays(np.arange(0, 3 * n + 1, 3, dtype=np.int32), np.arange(3 * n) % k)
dataset = datasets.Dataset(pa.table({"tags": lists}))
names = tuple(map(str, range(k)))

def read():
    rows = as_label_lists(dataset, find_label_format(dataset, "tags", names))
    labels, found = sparse_labels(rows)
    assert found == names and labels.counts.tolist() == [60] * k
    labels_digest(found, labels, np.zeros((1, k), dtype=np.int8))

print(peak_memory(read)[1])
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux")
def test_a_table_of_two_gigabytes_is_never_made():
    output = subprocess.run([sys.executable, "-c", READ], capture_output=True, text=True, check=True).stdout
    assert float(output) < 300
