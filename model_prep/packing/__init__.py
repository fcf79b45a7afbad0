"""Where weights lie in the packing that the planner would choose.

packing     the diagonals of each weight, from the planner itself
diagonals   the same for given slots, and masks of whole diagonals
lines       the rotations that each weight needs
patterns    masks of equal size and different structure, for experiments
"""
