"""Data: where examples come from, how they are split, and how they become tokens.

- `examples`: what an example is; duplicates, and what a source returns
- `stdlib`: the source files of the running interpreter's standard library; `docstrings`: the built-in task made of them
- `readers` and `formats`: the user's own files
- `splits`: who goes to train, validation and test, and in what order
- `prepare`: all of it, from the settings to three parquet files and a manifest
- `pin`: the interpreter that a study was made with; `corpus`: what the built-in models are pretrained on
- `files`: reading a split back; `encoding`: from texts to tokens
- `fit`: whether a tokenizer takes the data, and what is cut; `notices`: what isn't learnt, in words
"""
