"""Says where and how a picture could be more beautiful, asking a vision-language model."""
