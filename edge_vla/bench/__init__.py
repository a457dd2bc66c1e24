"""Evidence: how far a candidate's tokens are from the reference's, how fast and how large both are."""
