"""What a server keeps on disk: the layout of its state directory, and copies of it."""
