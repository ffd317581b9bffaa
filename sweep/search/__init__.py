"""What to try next: the space, the sampler, and the loop that asks, trains and tells."""
