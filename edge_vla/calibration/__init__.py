"""BUILD: what the policy sees when it acts, so that rounding errs where no action notices."""
