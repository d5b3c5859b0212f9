"""One file for each kind of model: how it is loaded, and how its head goes back."""
