"""What one task is scored by."""
