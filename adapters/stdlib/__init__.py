"""Adapters between `logging` and sinks, in both directions."""
