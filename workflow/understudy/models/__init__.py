"""Models: where base models come from, and how they get into memory.

- `prepare`: from the settings to a model card, whether the model is pretrained here, a folder or on a hub
- `checkpoint`: what a folder has to hold, and what is in it; `hub`: fetching one
- `tokenizer`, `pretrain`, `cache`: the built-in family of small Llamas
- `loading`: from a card to a tokenizer and a model; `quantization`: bitsandbytes, kept out of its traps
- `execution`: how trials run, with every `auto` decided
"""
