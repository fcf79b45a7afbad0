"""More workers than one process pool has memory or machines for."""
