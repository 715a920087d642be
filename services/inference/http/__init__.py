"""The HTTP side: what clients send, what they are told, who may ask and how much."""
