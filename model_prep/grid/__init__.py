"""Layers as grids of products and rotations with prices, and masks within a budget of milliseconds.

layer    cells on baby and giant lines: what each costs, and what to keep at a price
rows     a gathered first layer: any weights, equally many in each row
budget   one price for all layers, found so that the plan meets its budget
"""
