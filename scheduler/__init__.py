"""The scheduler: from the backlog to a tier queue, late, with a reason."""
