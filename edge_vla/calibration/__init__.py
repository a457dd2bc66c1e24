"""BUILD: which frames an export is calibrated on, and what the network computes on them."""
