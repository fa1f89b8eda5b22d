"""What people are told: by the reports, of a cache that helps little, of what is not cached."""
