"""Several models of one shape that train together, as one model with a leading dimension of members."""
