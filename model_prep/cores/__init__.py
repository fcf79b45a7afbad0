"""The shared optimisers of compression, each written once, on any structure.

session     what they work on: a network and its training, one run at a time
masked      retraining under a mask, and sparsity that rises along a schedule
admm        training towards any set that has a projection
reweighted  training groups towards zero, counted rather than shrunk
quantized   training with rounded weights and activations
settled     weights onto levels, a growing share at a time
"""
