"""How it is learned: optimizers, divergence, and two engines with one behaviour."""
