"""BCE, Mixup and BalanceMix on 1,797 handwritten digits with long-tailed, 40% mislabelled attributes.

    accelerate launch recipes/digits.py

Needs: nothing but the package (the digits come with scikit-learn); runs offline.
"""

from hf_balancemix.recipe import RECIPES, main

RECIPE = RECIPES["digits"]

if __name__ == "__main__":
    main(RECIPE)
