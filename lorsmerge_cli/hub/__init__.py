"""Downloads from and uploads to the Hugging Face Hub, and messages for its errors."""
