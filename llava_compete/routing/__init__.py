"""What the routers of a model do with real rows: collected, written down, drawn."""
