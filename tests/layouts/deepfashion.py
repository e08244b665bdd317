"""Writes DeepFashion's "Category and Attribute Prediction Benchmark" in miniature: the lists and pictures."""

from pathlib import Path

import numpy as np

from tests.layouts.voc import write_picture

TYPES = (
    "floral graphic striped embroidered pleated solid lattice",
    "long_sleeve short_sleeve sleeveless",
    "maxi_length mini_length no_dress",
    "crew_neckline v_neckline square_neckline no_neckline",
    "denim chiffon cotton leather faux knit",
    "tight loose conventional",
)
ATTRIBUTES = {name: number for number, names in enumerate(TYPES, start=1) for name in names.split()}
FOLDER = "Category and Attribute Prediction Benchmark"


def write_deepfashion(folder, sizes=(30, 8, 30), seed=0, attributes=ATTRIBUTES, pictures="Img/img"):
    """Write the benchmark's folder into ``folder``; ``sizes`` are those of train, val and test.

    The first three pictures of each part are grey, CMYK and rotated, the fourth has no attribute. Thirty show each of
    the 26 attributes. Returns {part: {listed path: [names of its attributes]}}.
    """
    rng, root, truth, number = np.random.default_rng(seed), Path(folder) / FOLDER, {}, 0
    annotations = root / "Anno_fine"
    annotations.mkdir(parents=True)
    table = "".join(f"{name:<29}{kind}\n" for name, kind in attributes.items())
    (annotations / "list_attr_cloth.txt").write_text(
        f"{len(attributes)}\nattribute_name  attribute_type\n{table}", encoding="utf-8"
    )
    for part, size in zip(("train", "val", "test"), sizes, strict=True):
        truth[part] = {}
        values = rng.random((size, len(attributes))) < 0.1
        values[np.arange(size), (np.arange(size) - 4) % len(attributes)] = True
        values[3] = False
        for i, row in enumerate(values):
            number += 1
            garment = "Chemise_'d'été' [a] & <b>" if i == 5 else f"Sheer_Pleated-Front_Blouse_{number // 4}"
            path = f"img/{garment}/img_{number:08d}.jpg"
            truth[part][path] = [name for name, value in zip(attributes, row, strict=True) if value]
            kind = ("L", "CMYK", "rotated")[i] if i < 3 else "RGB"
            write_picture((root / pictures).parent / path, row.astype(float), kind)
        (annotations / f"{part}.txt").write_text("".join(f"{path}\n" for path in truth[part]), encoding="utf-8")
        lines = "".join(" ".join(str(int(value)) for value in row) + " \n" for row in values)
        (annotations / f"{part}_attr.txt").write_text(lines, encoding="utf-8")
    return truth
