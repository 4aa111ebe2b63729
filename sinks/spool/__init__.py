"""Events on disk until their target has taken them."""
