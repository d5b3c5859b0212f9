"""The presets: `default`, cross-fitted, and `paper`, as published."""
