"""What the methods of the control service do, one module for each service of the interface."""
