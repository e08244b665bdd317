"""Reading labels and images, injecting noise, and the road of one mini-batch."""
