"""The reference client in C++ (``src``), its test vectors, and what prepares a device for it."""
