"""How good the answers are: the metrics, and the pages that show them."""
