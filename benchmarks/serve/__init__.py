"""What the server costs, how fairly it shares, what it survives. Every study starts a real `edge-vla serve`."""
