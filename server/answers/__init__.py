"""How results look on the wire: whole bodies and stream chunks of each endpoint."""
