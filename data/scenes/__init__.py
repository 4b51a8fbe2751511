"""A small generated world of coloured shapes in the formats of the real data sets."""
