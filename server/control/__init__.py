"""The control service: what nodes and tools that are not Flower may ask (gRPC, mutual TLS)."""
