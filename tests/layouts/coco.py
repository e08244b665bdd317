"""Writers of COCO's official layout: tiny data sets with real pictures, and annotation files of the real size."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

CLASS_NAMES = ("traffic light", "кошка", "a, b", 'the "best" <b>', "dog [0-9]*")
# Every third is what COCO calls its files; the others are what people call theirs.
FILE_NAMES = (
    "{:012d}.jpg",
    "{} собака и кот.jpg",
    '{} it\'s "quoted".jpg',
    "{:012d}.jpg",
    "{} <b>写真 & [0-9]*?.jpg",
    "{} %20#x::line\nbreak 🐈.jpg",
)
KINDS = ("RGB", "L", "CMYK", "rotated")


def write_coco(folder, year="2017", train=24, val=12, size=20, classes=5, seed=0):
    """Write ``train`` and ``val`` pictures; class k brightens the k-th stripe of a picture (a colour of its own).

    Every seventh picture has no annotation, and every seventh has crowds only. Pictures are ``size`` high and a
    quarter wider, and stored in turn as ``KINDS`` says.

    Returns:
        By split ("train", "test"): image id -> set of class names, pictures without annotations included.
    """
    rng = np.random.default_rng(seed)
    folder = Path(folder)
    names = [*CLASS_NAMES, *(f"class {k}" for k in range(classes))][:classes]
    category_ids = np.sort(rng.choice(np.arange(1, 91), classes, replace=False)).tolist()
    categories = [{"supercategory": "thing", "id": i, "name": n} for i, n in zip(category_ids, names, strict=True)]
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    truth = {}
    for split, name, rows in (("train", "train", train), ("test", "val", val)):
        pictures = folder / f"{name}{year}"
        pictures.mkdir(exist_ok=True)
        ids = rng.choice(np.arange(1, 1_000_000), rows, replace=False).tolist()
        present = rng.random((rows, classes)) < np.linspace(0.7, 0.3, classes)
        present[np.arange(rows), rng.integers(classes, size=rows)] = True
        present[5::7] = False
        images, annotations = [], []
        for row, image_id in enumerate(ids):
            file_name = FILE_NAMES[row % len(FILE_NAMES)].format(image_id)
            width, height = _save_picture(pictures / file_name, present[row], size, KINDS[row % len(KINDS)], rng)
            images.append({"license": 1, "file_name": file_name, "height": height, "width": width, "id": image_id})
            for k in np.flatnonzero(present[row]):
                for _ in range(rng.integers(1, 4)):
                    crowd = row % 7 == 4 or rng.random() < 0.1
                    annotation = _annotation(width, height, crowd)
                    annotation |= {"image_id": image_id, "category_id": category_ids[k]}
                    annotations.append(annotation | {"id": 1000 + len(annotations)})
        content = {
            "info": {"description": "tiny", "year": int(year)},
            "licenses": [{"id": 1, "name": "none"}],
            "images": images,
            "annotations": [annotations[i] for i in rng.permutation(len(annotations))],
            "categories": [categories[i] for i in rng.permutation(classes)],
        }
        path = folder / "annotations" / f"instances_{name}{year}.json"
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        truth[split] = {i: {names[k] for k in np.flatnonzero(p)} for i, p in zip(ids, present, strict=True)}
    return truth


def stripes(present, size):
    """(size, size + size // 4, 3) float64: a dark picture with a bright stripe for each class that is present."""
    pixels = np.full((size, size + size // 4, 3), 40.0)
    height = size // len(present)
    for k in np.flatnonzero(present):
        pixels[k * height : (k + 1) * height, :, k % 3] += 160
    return pixels


def _save_picture(path, present, size, kind, rng):
    """Save one picture and return width and height, as COCO writes them: of the stored pixels."""
    pixels = stripes(present, size)
    pixels += rng.integers(-20, 21, pixels.shape)
    image = Image.fromarray(pixels.astype(np.uint8))
    options = {"quality": 95, "subsampling": 0}
    if kind == "rotated":
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6  # orientation: "turn me clockwise"
        image = image.transpose(Image.Transpose.ROTATE_90)
    elif kind != "RGB":
        image = image.convert(kind)
    if kind == "L":
        del options["subsampling"]
    image.save(path, "JPEG", **options)
    return image.size


def _annotation(width, height, crowd):
    if crowd:
        outline = {"counts": [3, 5, width * height - 8], "size": [height, width]}
    else:
        outline = [[0.5, 0.5, width - 0.5, 0.5, width / 2, height - 1.25]]
    box = [0.5, 0.5, width - 1.0, height - 1.75]
    return {"segmentation": outline, "area": box[2] * box[3], "iscrowd": int(crowd), "bbox": box}


def write_synthetic_annotations(path, images, boxes, seed=0):
    """Write an annotation file as large as COCO's for as many ``boxes``: 860,000 make about 450 MB.

    The first boxes give each of the ``images`` one, the others fall where they fall; classes are drawn with a long
    tail from 80 categories, whose ids have gaps. Written piece by piece.
    """
    rng = np.random.default_rng(seed)
    category_ids = np.setdiff1d(np.arange(1, 91), [12, 26, 29, 30, 45, 66, 68, 69, 71, 83])
    share = 1 / np.arange(1, 81) ** 0.8
    image_ids = rng.choice(np.arange(1, 6 * images + 1), images, replace=False)
    owners = np.concatenate([image_ids, rng.choice(image_ids, max(0, boxes - images))])[:boxes].tolist()
    classes = rng.choice(category_ids, boxes, p=share / share.sum()).tolist()
    outlines = []
    for _ in range(2000):
        corners = rng.integers(0, 64_000, (int(rng.gamma(1.6, 12)) + 4, 2)) / 100
        outlines.append(json.dumps([corners.ravel().tolist()]))
    chosen = rng.integers(len(outlines), size=boxes).tolist()
    with Path(path).open("w", encoding="utf-8") as file:
        file.write('{"info": {"year": 2017}, "licenses": [], "images": [')
        for n, i in enumerate(image_ids.tolist()):
            url = f"http://images.cocodataset.org/train2017/{i:012d}.jpg"
            file.write(
                f'{", " * (n > 0)}{{"license": 3, "file_name": "{i:012d}.jpg", "coco_url": "{url}", "height": 480, '
                f'"width": 640, "date_captured": "2013-11-14 16:28:13", "flickr_url": "{url}", "id": {i}}}'
            )
        file.write('], "annotations": [')
        for n, (image, category, outline) in enumerate(zip(owners, classes, chosen, strict=True)):
            file.write(
                f'{", " * (n > 0)}{{"segmentation": {outlines[outline]}, "area": {n % 9973}.7312, "iscrowd": 0, '
                f'"image_id": {image}, "bbox": [473.07, 395.93, 38.65, 28.67], "category_id": {category}, '
                f'"id": {n + 1}}}'
            )
        categories = [
            {"supercategory": "thing", "id": i, "name": f"class {i}"} for i in rng.permutation(category_ids).tolist()
        ]
        file.write(f'], "categories": {json.dumps(categories)}}}')
