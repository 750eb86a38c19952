"""The covering design: the axes of a case, and a fixed table of layouts in which all pairs of their classes meet."""
