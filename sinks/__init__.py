"""The sinks: where event dicts are put. See `outfall` for the public names."""
