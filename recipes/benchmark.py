"""How long the parts of BalanceMix take and how much memory they need.

python recipes/benchmark.py --help
"""

from hf_balancemix.benchmark import main

if __name__ == "__main__":
    main()
