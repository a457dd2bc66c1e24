"""What a user can get wrong, fault by fault: a typed error, one line, an exit code by kind, and nothing left behind."""
