"""The phantom hospitals: which findings a film has, and how they are drawn."""
