"""What a trainer writes to files, and how it takes it back."""
