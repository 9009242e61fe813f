"""A data set before anyone trains on it: what it holds, what was left out, what is in it twice."""
