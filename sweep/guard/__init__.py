"""The rules of divergence for a training loop of one's own."""

from sweep.guard.loop import Guard, watch

__all__ = ["Guard", "watch"]
