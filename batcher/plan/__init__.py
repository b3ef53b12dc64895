"""What is still to be sent: requests, resuming, equal requests, forecast."""
