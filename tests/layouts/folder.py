"""Writes one tiny data set in every layout of a user's own folder; the colour of a picture tells its labels."""

import csv
import io
import json

import datasets
import pyarrow as pa
import pyarrow.parquet
from PIL import Image

NAMES = ("cat", "dog", "eel")
KINDS = ("jsonl", "csv", "csv_columns", "metadata_parquet", "parquet", "parquet_paths", "disk")
SPLITS = {"train": 12, "test": 6}
# How often cat, dog and eel occur in rows 0 to 11 and in rows 0 to 5: row i has class k if bit k of i % 8 is set.
COUNTS = {"train": [6, 6, 4], "test": [3, 2, 2]}


def labels_of_row(row, names=NAMES):
    return [name for k, name in enumerate(names) if row % 8 >> k & 1]


def labels_of_picture(picture, names=NAMES):
    """What the colour says: red is the first class, green the second, blue the third."""
    return [name for name, value in zip(names, picture.convert("RGB").getpixel((0, 0)), strict=True) if value > 127]


def picture_of_row(row, size=8):
    return Image.new("RGB", (size, size), tuple(255 * (row % 8 >> k & 1) for k in range(3)))


def write_folder(folder, kind="jsonl", names=NAMES, splits=None, file_names=None, size=8):
    """Write the data set into ``folder`` and return it.

    Args:
        folder: Is made.
        kind: One of ``KINDS``.
        names: The three classes.
        splits: Rows of each split; a split called "" lies in the folder itself.
        file_names: Of the pictures of each split; "0.png", "1.png", ... if None.
        size: Of the pictures, in pixels.
    """
    folder.mkdir(parents=True)
    parts = {}
    for split, count in (SPLITS if splits is None else splits).items():
        place = folder if kind in ("parquet", "parquet_paths", "disk") else folder / split
        files = list(file_names or (f"{row}.png" for row in range(count)))[:count]
        if kind == "parquet_paths":
            files = [f"pictures/{split}/{file}" for file in files]
        labels = [labels_of_row(row, names) for row in range(count)]
        pictures = [picture_of_row(row, size) for row in range(count)]
        if kind not in ("parquet", "disk"):
            for file, picture in zip(files, pictures, strict=True):
                (place / file).parent.mkdir(parents=True, exist_ok=True)
                picture.save(place / file, "PNG")
        if kind == "disk":
            feature = datasets.List(datasets.ClassLabel(names=list(names)))
            features = datasets.Features({"image": datasets.Image(), "labels": feature})
            parts[split] = datasets.Dataset.from_dict({"image": pictures, "labels": labels}, features=features)
        else:
            _write_table(kind, place, split, files, labels, pictures, names)
    if kind == "disk":
        datasets.DatasetDict(parts).save_to_disk(folder)
    return folder


def _write_table(kind, place, split, files, labels, pictures, names):
    if kind == "jsonl":
        lines = [{"file_name": file, "labels": row} for file, row in zip(files, labels, strict=True)]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (place / "metadata.jsonl").write_text(text, encoding="utf-8")
    elif kind.startswith("csv"):
        with open(place / "metadata.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file_name", *(names if kind == "csv_columns" else ["labels"])])
            for name, row in zip(files, labels, strict=True):
                marks = [int(known in row) for known in names] if kind == "csv_columns" else ["|".join(row)]
                writer.writerow([name, *marks])
    elif kind == "metadata_parquet":
        pa.parquet.write_table(pa.table({"file_name": files, "labels": labels}), place / "metadata.parquet")
    else:
        images = files if kind == "parquet_paths" else [{"bytes": _png(p), "path": None} for p in pictures]
        table = pa.table({"image": images, "labels": labels})
        pa.parquet.write_table(table, place / f"{split}-00000-of-00001.parquet")


def _png(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
