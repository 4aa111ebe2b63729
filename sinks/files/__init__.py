"""Streams and files: appended to, watched, rotated."""
