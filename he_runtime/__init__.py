"""CompressedModel in, Plan out; price, simulate, execute. No torch, no grpc."""
