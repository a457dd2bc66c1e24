"""The CPU engine: speed beside other engines, long runs, drafts."""
