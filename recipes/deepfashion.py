"""BalanceMix on the fine-grained attributes of DeepFashion, whose labels are noisy as they come, as in the paper.

    accelerate launch recipes/deepfashion.py --data_dir DIR

DIR holds Anno_fine/ and Img/ of the "Category and Attribute Prediction Benchmark". A GPU is needed to finish.
"""

from hf_balancemix.recipe import RECIPES, main

RECIPE = RECIPES["deepfashion"]

if __name__ == "__main__":
    main(RECIPE)
