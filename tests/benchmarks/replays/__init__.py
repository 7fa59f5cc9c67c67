"""What `transfer.py` and `window.py` replay: tables of finished runs, and every method that is compared on them.

Some modules have the name of the library that they adapt: import them from this package only.
"""
