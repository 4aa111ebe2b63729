"""What an event is, and how it becomes bytes. Imports no other folder."""
