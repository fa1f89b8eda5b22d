"""DiCache written again, without the package."""
