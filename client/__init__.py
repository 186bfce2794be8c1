"""What runs next to private data: data, model, private training, update."""
