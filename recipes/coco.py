"""BalanceMix on MS COCO with the paper's settings.

    accelerate launch recipes/coco.py --data_dir DIR [--noise mislabel --noise_rate 0.4]

DIR holds annotations/ with instances_train2017.json and instances_val2017.json, and the folders train2017 and val2017
with the images; or the same with 2014. A GPU is needed to finish.
"""

from hf_balancemix.recipe import RECIPES, main

RECIPE = RECIPES["coco"]

if __name__ == "__main__":
    main(RECIPE)
