"""Activations to polynomials: fits, degrees, ranges, and what removal leaves.

activations   the functions that can be replaced
polynomial    learned quadratics: fit, constraints, range penalty
approximation polynomials of any degree, all at once or one after the other
degrees, level_tables   which degree each activation gets within a budget of levels
merging       linear layers that meet where an activation went
herpn         a normalized polynomial activation to train from scratch
ranges        the interval of every polynomial, and how many values leave it
"""
