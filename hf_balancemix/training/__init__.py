"""The trainers, their arguments and their checkpoints."""
