"""The commands of `edge-vla`, a file each: options in, one call into the package, its result printed."""
