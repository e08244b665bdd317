"""Models of any backbone and one of several multi-label heads, in flat files that travel with a checkpoint."""
