"""Which requests are still to send: row × model, minus what is answered."""
