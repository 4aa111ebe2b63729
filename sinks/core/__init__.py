"""What every sink is made of. Imports `event` alone."""
