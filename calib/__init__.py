"""From float to ranges: observers, calibration methods, and re-estimated BatchNorm."""
