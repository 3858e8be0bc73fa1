"""The paper's printed tables, their reanalysis, and the paper's findings in a study."""
