"""The paper's printed tables, their reanalysis, and its findings held against a study."""
