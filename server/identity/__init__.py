"""Who is calling, and how the channel is protected."""
