"""What every part of fedslm shares; imports none of the other packages."""
