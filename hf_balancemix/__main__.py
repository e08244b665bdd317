"""``python -m hf_balancemix`` is ``hf-balancemix``."""

from hf_balancemix.cli.main import main

if __name__ == "__main__":
    main()
