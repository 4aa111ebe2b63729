"""Sockets and datagrams, both ends."""
