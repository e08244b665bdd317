"""BalanceMix on your own images: a folder with metadata.jsonl or CSV, Parquet, a saved data set, or one of the Hub.

    accelerate launch recipes/folder.py --data_dir DIR
    accelerate launch recipes/folder.py --dataset NAME_ON_THE_HUB

DIR holds train/ and test/, each with images and a metadata.jsonl with lines such as
{"file_name": "0001.jpg", "labels": ["cat", "dog"]}; `--help` says what else is understood.
"""

from hf_balancemix.recipe import RECIPES, main

RECIPE = RECIPES["folder"]

if __name__ == "__main__":
    main(RECIPE)
