"""Channels: how much each matters, which can go, and networks without them.

hessian, fisher   saliency
selection         which channels go, over all layers
units             channels that can only go together
slimming          the network without them
permutation       the same network with its channels in another order
"""
