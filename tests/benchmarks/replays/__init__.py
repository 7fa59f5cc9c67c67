"""What `transfer.py` and `window.py` replay: tables of finished runs, and every method that is compared on them."""
