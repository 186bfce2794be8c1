"""What an ARM board does, run by QEMU: `make aarch64-run`. No other command collects these."""
