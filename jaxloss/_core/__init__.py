"""What every loss is made of; nothing here is public."""
