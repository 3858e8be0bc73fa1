"""The teacher: who writes the reasoning traces, and which traces are accepted."""
