"""Ways into the sinks from structlog and `logging`, and back out to `logging.Handler`."""
