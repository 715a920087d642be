"""One way to serve and to read what users bring."""
