"""How a checkpoint is asked about films, and its answers."""
