"""Number formats: what quantisation methods and bits keep of the policy, and what other programs make of ours."""
