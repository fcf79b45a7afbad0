"""Layers as grids of products and rotations with prices, and networks within a budget of milliseconds.

layer      cells on baby and giant lines: what each costs, and what to keep at a price
rows       a gathered first layer: any weights, equally many in each row
budget     what goes from all layers together, least saliency per millisecond first, until the plan meets its budget
explained  what kept weights still explain of outputs: the measure by which whole choices are compared
removal    networks without some activations: a line stands in, and neighbours merge
reorder    channels in the order in which masks keep most
pricing    what plans of a network in training would cost
start      of all this, where a descent starts from
towards    groups and projections for training that moves weights towards a grid
"""
