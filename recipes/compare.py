"""Compare methods under label noise: a grid of methods, noises and seeds on any of the recipes' data sets.

    python recipes/compare.py digits
    python recipes/compare.py coco --data_dir DIR --config table1 --dry_run

Needs: what the data set's recipe needs. `hf-balancemix compare` is the same.
"""

from hf_balancemix.compare import main

if __name__ == "__main__":
    main()
