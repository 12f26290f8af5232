"""The functions as one would write them without thinking of a cold start: what Knock's own are compared
with."""
