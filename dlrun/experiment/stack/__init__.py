"""Runs that train together as one stack, and are recorded as runs alone."""

from dlrun.engine.stack.layers import StackedFlatLinear, register_stacked_layer
from dlrun.models.linear import Linear, Logistic

register_stacked_layer(Linear, StackedFlatLinear)
register_stacked_layer(Logistic, StackedFlatLinear)
