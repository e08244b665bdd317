"""What every ``recipes/*.py`` shares: parse, load, train, evaluate, predict, write."""

from hf_balancemix.recipe.command import Recipe
from hf_balancemix.recipe.data_sets import RECIPES
from hf_balancemix.recipe.defaults import BOOKKEEPING, PAPER
from hf_balancemix.recipe.main import main

__all__ = ["BOOKKEEPING", "PAPER", "RECIPES", "Recipe", "main"]
