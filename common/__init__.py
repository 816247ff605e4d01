"""What every lesson needs and no lesson teaches."""
