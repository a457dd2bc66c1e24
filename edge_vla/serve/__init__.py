"""One policy for many robots: wire protocols in front, one engine behind. `serve.client` is the robot's side."""
