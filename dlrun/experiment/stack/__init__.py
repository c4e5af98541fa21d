"""Runs that train together as one stack, and are recorded as runs alone."""

from dlrun.engine.stack.layers import StackedFlatLinear, register_layer
from dlrun.models.linear import Linear, Logistic

register_layer(Linear, StackedFlatLinear)
register_layer(Logistic, StackedFlatLinear)
