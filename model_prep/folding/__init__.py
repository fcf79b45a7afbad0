"""Absorbing what lies between linear layers: batch norms, completed squares, scales.

folding     the entry, and squares
push, pull  affine maps forwards and backwards into their neighbours
"""
