"""Utterances: audio, texts, languages, and the data sets they come from."""
