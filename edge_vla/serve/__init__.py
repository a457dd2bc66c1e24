"""One policy for many robots: wire protocols in front, one engine behind. `edge_vla.serve.client` is the robot's side."""
