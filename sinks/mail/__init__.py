"""Events by mail."""
