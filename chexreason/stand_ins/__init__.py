"""The small models of the real architectures, and how they are built."""
