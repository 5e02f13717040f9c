"""What prints the generated pages of docs/reference."""
