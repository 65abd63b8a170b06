"""Who may hold a backend: counts, caps and the policy that hands backends on."""
