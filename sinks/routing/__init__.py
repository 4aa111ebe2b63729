"""One event to several sinks."""
