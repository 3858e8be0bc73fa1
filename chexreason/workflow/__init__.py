"""How notebooks run, how the book is built, and what a study costs."""
