"""Between `logging` and sinks, both ways."""
