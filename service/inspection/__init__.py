"""The way of one image: watch, settle, claim, decode, score, decide, record, deliver."""
