"""To the Hub: pushes that are given up in time, and model cards."""
