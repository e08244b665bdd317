"""Writes Pascal VOC in miniature: the folders, image sets, annotations and pictures of VOCdevkit."""

import colorsys
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
CELL = 4  # pixels
ROTATED = 6  # EXIF orientation of a camera held upright


def write_picture(path, strengths, kind="RGB"):
    """A small JPEG, one cell per class, bright in a colour of its own where the class is there.

    ``strengths`` holds K numbers from 0 to 1; ``kind`` is "RGB", "L" (grey), "CMYK" or "rotated" (by EXIF).
    """
    columns = 5 if len(strengths) <= 20 else 6
    cells = np.full((-(-len(strengths) // columns), columns, 3), 25.0)
    for k, strength in enumerate(strengths):
        cells[divmod(k, columns)] += 220 * strength * np.array(colorsys.hsv_to_rgb(k / len(strengths), 0.8, 1))
    pixels = cells.repeat(CELL, axis=0).repeat(CELL, axis=1).clip(0, 255).astype(np.uint8)
    picture, options = Image.fromarray(pixels), {"quality": 95, "subsampling": 0}
    if kind == "rotated":
        exif = Image.Exif()
        exif[0x0112] = ROTATED
        picture, options["exif"] = picture.transpose(Image.Transpose.ROTATE_90), exif
    elif kind != "RGB":
        picture = picture.convert(kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, "JPEG", **options)


def write_voc(folder, images=46, seed=0):
    """Write ``folder/VOCdevkit`` with VOC2007 (train, val, trainval, test) and VOC2012 (train, val, trainval).

    There are ``images`` in each trainval and in the test; 46 or more show every class in every set. The first six of
    these are grey, CMYK, rotated, a dog beside a difficult cat, an easy beside a difficult dog, and nothing but
    difficult objects (cat, sheep). Returns {year: {set: {image: [(class, difficult), ...]}}}, the objects.
    """
    rng, devkit, truth = np.random.default_rng(seed), Path(folder) / "VOCdevkit", {}
    for year, subsets in ((2007, ("trainval", "test")), (2012, ("trainval",))):
        truth[year], number = {}, 0
        for subset in subsets:
            truth[year][subset] = {}
            for i in range(images):
                number += int(rng.integers(1, 4))  # real numbers have gaps, too
                image = f"{number:06d}" if year == 2007 else f"{2008 + 4 * i // images}_{number:06d}"
                truth[year][subset][image] = objects = _objects(i, rng)
                root = devkit / f"VOC{year}"
                _write_annotation(root, image, objects)
                kind = ("L", "CMYK", "rotated")[i] if i < 3 else "RGB"
                strengths = [max([0.5 if d else 1 for name, d in objects if name == n], default=0) for n in NAMES]
                write_picture(root / "JPEGImages" / f"{image}.jpg", strengths, kind)
        # The classes come in pairs of images, so that both halves have all of them.
        trainval = list(truth[year]["trainval"].items())
        truth[year] |= {"train": dict(trainval[::2]), "val": dict(trainval[1::2])}
        for subset, entries in truth[year].items():
            _write_sets(devkit / f"VOC{year}" / "ImageSets" / "Main", subset, entries)
    return truth


def write_class_file(path, values):
    """Write {image: value} as the devkit does: a name, then the value in two places."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{image} {value:2d}\n" for image, value in values.items()), encoding="utf-8")


def _objects(i, rng):
    special = {
        3: [("dog", False), ("cat", True)],
        4: [("dog", True), ("dog", False)],
        5: [("cat", True), ("sheep", True), ("cat", True)],
    }
    others = [(str(name), bool(rng.random() < 0.3)) for name in rng.choice(NAMES, rng.integers(0, 3))]
    return special.get(i, [(NAMES[(i // 2 - 3) % len(NAMES)], False), *others])


def _write_sets(main, subset, entries):
    main.mkdir(parents=True, exist_ok=True)
    (main / f"{subset}.txt").write_text("".join(f"{image}\n" for image in entries), encoding="utf-8")
    for name in NAMES:
        flags = {image: [d for n, d in objects if n == name] for image, objects in entries.items()}
        values = {image: -1 if not found else 0 if all(found) else 1 for image, found in flags.items()}
        write_class_file(main / f"{name}_{subset}.txt", values)


def _write_annotation(root, image, objects):
    boxes = "".join(
        f"""
    <object>
        <name>{escape(name)}</name>
        <pose>Unspecified</pose>
        <truncated>0</truncated>
        <difficult>{int(difficult)}</difficult>
        <bndbox><xmin>1</xmin><ymin>1</ymin><xmax>8</xmax><ymax>8</ymax></bndbox>
    </object>"""
        for name, difficult in objects
    )
    text = f"""<annotation>
    <folder>{root.name}</folder>
    <filename>{image}.jpg</filename>
    <size><width>20</width><height>16</height><depth>3</depth></size>
    <segmented>0</segmented>{boxes}
</annotation>
"""
    path = root / "Annotations" / f"{image}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
