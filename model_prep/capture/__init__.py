"""torch.export's graph -> our Graph: one node per homomorphic operation, or a refusal that names the line.

capture     the entry: a module and an example in, a Graph out
trace       torch.export and its sources
values      what a traced value is while it is being captured
layers, arithmetic, ops   one handler per torch operation
refusals    what has no homomorphic form, and what to do instead
"""
