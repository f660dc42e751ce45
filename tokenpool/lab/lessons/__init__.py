"""One module a notebook: its toys, figures, explorer, predictions and exercises (with solutions), in this order."""
