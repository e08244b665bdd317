"""The command `hf-balancemix`."""
