"""BCE, Mixup and BalanceMix with a pretrained backbone on scenes of clothes.

    accelerate launch recipes/scenes.py --data_dir DIR

DIR holds the four files of Fashion-MNIST (30 MB).
"""

from hf_balancemix.recipe import RECIPES, main

RECIPE = RECIPES["scenes"]

if __name__ == "__main__":
    main(RECIPE)
