"""The teacher: who writes the reasoning traces, and what a trace must be."""
