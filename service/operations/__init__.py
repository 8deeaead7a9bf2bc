"""What an operator asks for: doctor, retention, backup, restore."""
