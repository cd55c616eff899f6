"""The recipe of a merge: its type, how it is written and read, and the record of how an output was made."""
