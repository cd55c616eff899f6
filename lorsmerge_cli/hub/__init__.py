"""Files from and to the Hugging Face Hub, and its faults in words."""
