"""BalanceMix on Pascal VOC with the paper's settings.

    accelerate launch recipes/voc.py --data_dir DIR [--noise mislabel --noise_rate 0.4]

DIR holds VOCdevkit/VOC2007 and VOCdevkit/VOC2012, as the official archives unpack. A GPU is needed to finish.
"""

from hf_balancemix.recipe import RECIPES, main

RECIPE = RECIPES["voc"]

if __name__ == "__main__":
    main(RECIPE)
