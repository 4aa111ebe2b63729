"""The command ``outfall``."""
